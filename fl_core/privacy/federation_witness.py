"""A site as witness of the federation's ledger: it copies what is new, and refuses what was undone.

A coordinator whose store was set back to an older copy would forget what whole sites have spent
(SOUNDNESS, rule 14). So before a site trains under noise that the coordinator adds, it compares the
ledger with its own copy: the key is the one it saw first, the last entry it holds is still there,
byte by byte, and whatever follows continues it. Because entries are chained by hash, that one entry
stands for all before it. The coordinator keeps such copies too, beside its key, so that an older
backup of the store gets back what it lost.
"""

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import from_bytes, read_document, sha256_hex, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.guarantees import SITE
from fl_core.errors import LedgerCorrupt, ObjectCorrupt, ObjectMissing
from fl_core.privacy.federation import DATASET, FederationIdentity, identity
from fl_core.privacy.ledger_documents import MAX_ENTRY_BYTES, NO_ENTRY, LedgerEntry
from fl_core.updates.signing import verify_signature

_PIN = "identity.json"
_REMEDY = "take part again only when the coordinator has said what became of its ledger"


def witness_federation(store: ObjectStore, own: ObjectStore) -> int:
    """Copy the federation ledger's new entries into the site's own store.

    Args:
        store: The campaigns' store.
        own: The site's own store for these copies; nobody else writes there.

    Returns:
        Sequence number of the last entry that the site holds now.

    Raises:
        LedgerCorrupt: There is no ledger, another key signs it, an entry that the site holds is
            gone or another one, or a new one does not continue it.
        StoreUnavailable: One of the two stores does not answer.
    """
    found = identity(store)
    pinned = _pinned(own) if found is None else write_document(own, _PIN, found)
    if found is None or pinned is None:
        raise LedgerCorrupt("the store has no ledger of the federation to charge", hint=_REMEDY)
    if pinned != found:
        raise LedgerCorrupt(
            f"the federation's ledger is signed by key {found.public_key[:16]}..., this site knows "
            f"{pinned.public_key[:16]}...",
            hint=_REMEDY,
        )
    ledger = Below(store, keys.FEDERATION)
    seq, previous = _require_head(ledger, own)
    while (data := _entry(ledger, seq + 1)) is not None:
        seq += 1
        _require_next(data, seq=seq, previous=previous, public_key=pinned.public_key)
        own.put_once(keys.ledger_entry(seq), data)
        previous = sha256_hex(data)
    if seq == 0:
        raise LedgerCorrupt("the federation's ledger has no first entry", hint=_REMEDY)
    return seq


def put_back(store: ObjectStore, own: ObjectStore) -> int:
    """Bring back what a store lost of the federation's ledger, from the coordinator's own copies.

    A store that was set back to an older backup has forgotten what whole sites have spent; the
    entries are signed, so copies of them are as good as they were. A ledger that was written on
    meanwhile is left as it is, and ``witness_federation`` refuses it.

    Args:
        store: The campaigns' store.
        own: Copies that ``witness_federation`` made, on another disk than the store's.

    Returns:
        How many entries came back.
    """
    pinned, held = _pinned(own), len(own.list(keys.LEDGER))
    if pinned is None or write_document(store, keys.FEDERATION_IDENTITY, pinned) != pinned:
        return 0
    ledger, lacking = Below(store, keys.FEDERATION), list[int]()
    # From the end, because a ledger that has the last entry has all of them.
    for seq in range(held, 0, -1):
        theirs = _entry(ledger, seq)
        if theirs is not None:
            if theirs != own.get(keys.ledger_entry(seq)):
                return 0
            break
        lacking.append(seq)
    for seq in reversed(lacking):
        ledger.put_once(keys.ledger_entry(seq), own.get(keys.ledger_entry(seq)))
    return len(lacking)


def _pinned(own: ObjectStore) -> FederationIdentity | None:
    try:
        return read_document(own, _PIN, FederationIdentity)
    except ObjectMissing:
        return None


def _require_head(ledger: ObjectStore, own: ObjectStore) -> tuple[int, str]:
    """Return number and hash of the last entry that both hold; (0, zeros) before the first."""
    held = own.list(keys.LEDGER)
    if not held:
        return 0, NO_ENTRY
    seq = len(held)
    mine = own.get(keys.ledger_entry(seq))
    theirs = _entry(ledger, seq)
    if theirs is None:
        raise LedgerCorrupt(
            f"entry {seq} of the federation's ledger, which this site holds, is gone; the ledger "
            "was set back or cut off",
            hint=_REMEDY,
        )
    if theirs != mine:
        raise LedgerCorrupt(
            f"entry {seq} of the federation's ledger is another one than this site holds; the "
            "ledger was set back and written on",
            hint=_REMEDY,
        )
    return seq, sha256_hex(mine)


def _require_next(data: bytes, *, seq: int, previous: str, public_key: str) -> None:
    try:
        entry = from_bytes(LedgerEntry, data, what=keys.ledger_entry(seq))
    except ObjectCorrupt as error:
        raise LedgerCorrupt(f"entry {seq} of the federation's ledger: {error}") from error
    is_of_ledger = (entry.seq, entry.dataset, entry.unit) == (seq, DATASET, SITE)
    continues = is_of_ledger and entry.previous_sha256 == previous
    if not continues or not verify_signature(entry, public_key):
        fault = "is not signed by its key" if continues else "does not follow the one before it"
        raise LedgerCorrupt(f"entry {seq} of the federation's ledger {fault}", hint=_REMEDY)


def _entry(ledger: ObjectStore, seq: int) -> bytes | None:
    try:
        return ledger.get(keys.ledger_entry(seq), max_bytes=MAX_ENTRY_BYTES)
    except ObjectMissing:
        return None
    except ObjectCorrupt as error:
        raise LedgerCorrupt(f"entry {seq} of the federation's ledger: {error}") from error
