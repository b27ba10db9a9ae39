"""Witnesses: who keeps copies of a ledger's signed entries, so that a rollback shows.

A hash chain cannot show that its end was cut off, and a snapshot rolls ledger and outbox back
together; the same round trained twice on one charge turns epsilon 7.93 into 10.77. So every charge
goes to the witnesses before the first private forward pass, and at least one that the coordinator
does not run must acknowledge it (SOUNDNESS, rule 14). A witness is only a write-once store. It is
believed where it shows an entry signed by a key that the ledger has or had, and nowhere else: what
is unsigned, unreadable or lower than the ledger does not count, so nobody can block by lying. An
old key counts after a change of keys too: a folder from before the change may have written on.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, from_bytes, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import (
    LedgerCorrupt,
    ObjectCorrupt,
    ObjectMissing,
    PolicyRefused,
    StoreError,
    WitnessUnavailable,
)
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import MAX_ENTRY_BYTES, LostNumbers
from fl_core.privacy.ledger_entries import Chain, LedgerEntry
from fl_core.privacy.ledger_keys import is_of_keys, keys_before
from fl_core.privacy.witness_copies import Copies, ReadOnce

log = logging.getLogger(__name__)

LEAST_WITNESSES = 2
# A witness that is new or was away for long catches up over several rounds and counts after that.
MAX_PUSHED = 256
# At the coordinator so much of what no key of the ledger signed is looked at above its end, from
# below and from above: whoever can write there must not make every round longer. A witness of the
# site's own, which alone must acknowledge, is looked at whole.
MAX_USELESS = 64
BEHIND = (
    "a witness that answers lacks more than it takes at once, or holds something else there; where "
    "this is an older folder, whose key was replaced as lost, put the newest key.pem back"
)
RECOVER = "stop the site, find out what was restored, then run `fedloom ledger recover`"


@dataclass(frozen=True, slots=True)
class WitnessedStore:
    """A store that keeps copies of ledger entries.

    Attributes:
        name: What errors call it.
        store: Write-once; shared by several sites and ledgers.
        is_own: Whether somebody else than the coordinator runs it.
    """

    name: str
    store: ObjectStore
    is_own: bool


def require_enough_witnesses(witnesses: Sequence[bool]) -> None:
    """Refuse a policy that cannot show a rollback.

    Args:
        witnesses: For each, whether somebody else than the coordinator runs it.

    Raises:
        PolicyRefused: Fewer than two, or none that the coordinator does not run.
    """
    if len(witnesses) >= LEAST_WITNESSES and any(witnesses):
        return
    raise PolicyRefused(
        f"policy names {len(witnesses)} witnesses, {sum(witnesses)} of them not the coordinator's; "
        f"a guarantee needs {LEAST_WITNESSES} and one of the site's own",
        hint='add [[witness]] tables to policy.toml: kind = "coordinator", and a folder on another '
        "disk or a bucket of your own",
    )


def publish(
    ledger: Ledger,
    witnesses: Sequence[WitnessedStore],
    *,
    owner: str,
    held: dict[int, LedgerEntry] | None = None,
) -> tuple[str, ...]:
    """Bring the ledger's entries, the last included, to its witnesses.

    Args:
        ledger: The ledger, with the charge already durable on it.
        witnesses: Who keeps copies.
        owner: Site whose ledger it is.
        held: The last entry that each of the witnesses, by its place, was found to hold a moment
            ago; brought up to date. Of a witness that is in it, and whose entry the ledger still
            has, only what stands next to the ledger's last entry is looked at, so that a charge
            costs the same on a long ledger. None looks at all of them whole.

    Returns:
        Names of the witnesses that hold the last entry now.

    Raises:
        LedgerCorrupt: The ledger does not hold; or a witness shows an entry, signed by the
            ledger's own key, that the ledger lacks or holds otherwise.
        WitnessUnavailable: No witness of the site's own acknowledged the last entry.
    """
    prefix = keys.witness(owner, ledger.dataset, ledger.unit)
    chain = ledger.chain()
    acknowledged: list[WitnessedStore] = []
    known = {} if held is None else held
    hint = ""
    for place, each in enumerate(witnesses):
        witness = replace(each, store=ReadOnce(each.store))
        # Taken out, so that a witness that does not get to the end is looked at whole again.
        last = known.pop(place, None)
        try:
            copies = Copies(witness.store, prefix, last=last if _has(chain, last) else None)
            is_current = _bring(ledger, chain, witness, held=copies)
        except StoreError as error:
            log.warning("witness away name=%s why=%s", witness.name, error)
            continue
        if is_current:
            known[place] = chain.entries[-1]
            acknowledged.append(witness)
        else:
            hint = BEHIND
            log.warning("witness does not count name=%s", witness.name)
    if not any(witness.is_own for witness in acknowledged):
        own = ", ".join(witness.name for witness in witnesses if witness.is_own) or "none"
        raise WitnessUnavailable(
            f"entry {chain.entries[-1].seq} of ledger {ledger.dataset!r} was acknowledged by no "
            f"witness of the site's own ({own}); nothing is trained until one does",
            hint=hint,
        )
    return tuple(witness.name for witness in acknowledged)


def _has(chain: Chain, last: LedgerEntry | None) -> bool:
    """Say whether a ledger still has an entry; looked for from its end, where it stands."""
    if last is None:
        return False
    return next((e for e in reversed(chain.entries) if e.seq <= last.seq), None) == last


def _bring(ledger: Ledger, chain: Chain, witness: WitnessedStore, *, held: Copies) -> bool:
    """Push what the witness lacks, lowest first; say whether it holds the last entry."""
    prefix, entries = held.prefix, chain.entries
    above = held.above(entries[-1].seq)
    _require_nothing_unknown(ledger, witness, chain, prefix=prefix, above=above)
    lacking: list[LedgerEntry] = []
    for entry in reversed(entries):
        if held.has(entry.seq):
            is_certain = entry == held.last
            if not is_certain and not _holds(ledger, witness, entry, prefix=prefix, chain=chain):
                return False
            break
        lacking.append(entry)
    for entry in lacking[: -MAX_PUSHED - 1 : -1]:
        key = keys.witnessed_entry(prefix, entry.seq)
        if witness.store.put_once(key, to_bytes(entry)):
            continue
        if not _holds(ledger, witness, entry, prefix=prefix, chain=chain):
            return False
    return len(lacking) <= MAX_PUSHED


@dataclass(frozen=True, slots=True)
class WitnessVerdict:
    """What one witness says about a ledger.

    Attributes:
        name: What people call it.
        is_own: Whether the coordinator does not run it.
        complaint: The first entry that does not agree with the ledger, or empty.
        is_away: Whether it did not answer, so that nothing is known from it.
    """

    name: str
    is_own: bool
    complaint: str = ""
    is_away: bool = False


def ask_witnesses(
    ledger: Ledger,
    entries: Sequence[LedgerEntry],
    witnesses: Sequence[WitnessedStore],
    *,
    owner: str,
) -> list[WitnessVerdict]:
    """Compare a ledger with all that its witnesses hold, entry by entry; nothing is written.

    Args:
        ledger: The ledger; only its dataset, unit and public key are used.
        entries: Its entries, as far as they could be read.
        witnesses: Who keeps copies.
        owner: Site whose ledger it is.
    """
    prefix = keys.witness(owner, ledger.dataset, ledger.unit)
    verdicts = []
    for witness in witnesses:
        try:
            complaint = _disagreement(ledger, entries, witness, prefix=prefix)
        except StoreError:
            verdicts.append(WitnessVerdict(witness.name, witness.is_own, is_away=True))
            continue
        verdicts.append(WitnessVerdict(witness.name, witness.is_own, complaint))
    return verdicts


def _require_nothing_unknown(
    ledger: Ledger,
    witness: WitnessedStore,
    chain: Chain,
    *,
    prefix: str,
    above: Sequence[int],
) -> None:
    aside = chain.set_aside()
    for found in _own_above(ledger, witness, above, prefix=prefix, signers=chain.signers):
        if document_sha256(found) in aside:
            continue
        # Another process of this site may have written since the ledger was read.
        if found in ledger.entries():
            continue
        head, _ = ledger.head()
        raise LedgerCorrupt(
            f"ledger {ledger.dataset!r} ends at entry {head}, and witness {witness.name} holds "
            f"entry {found.seq} signed by this site; the ledger was rolled back or cut off",
            hint=RECOVER,
        )


def _own_above(
    ledger: Ledger,
    witness: WitnessedStore,
    above: Sequence[int],
    *,
    prefix: str,
    signers: Collection[str],
) -> Iterator[LedgerEntry]:
    """Yield what a witness holds of a ledger above its end, however much else stands there."""
    for places in (above, above[::-1]):
        useless = 0
        for seq in places:
            found = own_entry(ledger, witness, prefix=prefix, seq=seq, signers=signers)
            if found is not None:
                yield found
            elif not witness.is_own and (useless := useless + 1) == MAX_USELESS:
                break
        else:
            return
    log.warning(
        "witness holds what this site never signed name=%s entries=%d", witness.name, len(above)
    )


def _disagreement(
    ledger: Ledger, entries: Sequence[LedgerEntry], witness: WitnessedStore, *, prefix: str
) -> str:
    by_seq = {entry.seq: entry for entry in entries}
    aside = {sha256 for entry in entries for sha256 in entry.set_aside or ()}
    head, lost = max(by_seq, default=0), LostNumbers(entries)
    signers = keys_before(entries, [ledger.public_key])
    held = sorted(held_sequences(witness.store, prefix))
    above = [seq for seq in held if seq > head]
    for seq in held[: len(held) - len(above)]:
        found = own_entry(ledger, witness, prefix=prefix, seq=seq, signers=signers)
        if found is None or found == by_seq.get(seq) or document_sha256(found) in aside:
            continue
        if seq in by_seq:
            return (
                f"entry {seq} is another one at witness {witness.name}, signed by this site too: "
                "changed, or rolled back and written on"
            )
        if seq not in lost:
            return f"entry {seq} is missing and witness {witness.name} holds it"
    for found in _own_above(ledger, witness, above, prefix=prefix, signers=signers):
        if document_sha256(found) not in aside:
            return (
                f"the ledger ends at entry {head} and witness {witness.name} holds entry "
                f"{found.seq}, signed by this site: cut off or rolled back"
            )
    return ""


def held_sequences(store: ObjectStore, prefix: str) -> set[int]:
    """Return the sequence numbers under which a witness holds something, whatever it is."""
    found = (keys.witnessed_seq(prefix, key) for key in store.list(prefix))
    return {seq for seq in found if seq is not None}


def own_entry(
    ledger: Ledger,
    witness: WitnessedStore,
    *,
    prefix: str,
    seq: int,
    signers: Collection[str],
) -> LedgerEntry | None:
    """Return what a witness holds at ``seq`` if a key of the ledger signed it, else None.

    Args:
        ledger: The ledger; only its dataset and unit are used.
        witness: Who keeps copies.
        prefix: The ledger's copies there.
        seq: Which of them.
        signers: The keys that the ledger has or had.

    Raises:
        StoreError: The witness is away.
    """
    key = keys.witnessed_entry(prefix, seq)
    try:
        entry = from_bytes(LedgerEntry, witness.store.get(key, max_bytes=MAX_ENTRY_BYTES), what=key)
    except (ObjectCorrupt, ObjectMissing):
        return None
    is_of_ledger = (entry.seq, entry.dataset, entry.unit) == (seq, ledger.dataset, ledger.unit)
    return entry if is_of_ledger and is_of_keys(entry, signers) else None


def _holds(
    ledger: Ledger,
    witness: WitnessedStore,
    entry: LedgerEntry,
    *,
    prefix: str,
    chain: Chain,
) -> bool:
    """Say whether a witness is up to an entry; another one of ours there is a fork.

    An entry that a recovery has set aside, and charged for, stands at the witness for good.
    """
    found = own_entry(ledger, witness, prefix=prefix, seq=entry.seq, signers=chain.signers)
    if found is None or found == entry:
        return found is not None
    if document_sha256(found) in chain.set_aside():
        return True
    raise LedgerCorrupt(
        f"ledger {ledger.dataset!r} and witness {witness.name} hold two different entries "
        f"{entry.seq}, both signed by this site; the ledger was rolled back and written on",
        hint=RECOVER,
    )
