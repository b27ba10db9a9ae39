"""What is left of a ledger and who holds it: the entries that its own keys have signed.

A recovery begins here. Every holder is read, the ledger's own store and all witnesses; what another
key signed is nobody's entry. Which keys are the ledger's own follows from the one in force: it and
all before it. Where a key was lost, all that came after that one are too, also as far as the site
itself noted a loss: at a witness that somebody else runs such a note would prove nothing.

A thief of the key can sign an entry of any number. One that stands further above all others than a
ledger ever goes at once is charged, but nothing is built on it: it would use the numbers up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, sha256_hex, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import LedgerCorrupt, ObjectCorrupt, StoreError
from fl_core.privacy.ledger_documents import MAX_ENTRY_BYTES, LedgerEntry
from fl_core.privacy.ledger_keys import is_of_keys, keys_after, keys_before, signer_of
from fl_core.privacy.witness import WitnessedStore, held_sequences
from fl_core.updates.signing import SigningKey, public_hex

# How far past the last known entry a recovery goes when witnesses are away: what they may still
# hold lies below it, so that it cannot collide when they come back.
MARGIN = 1000
# From one entry that somebody holds to the next: several such recoveries, with nothing in between.
REACH = 10 * MARGIN
# Above it an entry counts only if the site or a witness of its own holds it: many short steps, too,
# must leave a ledger numbers to go on with.
HIGHEST_ELSEWHERE = 9 * 10**8


@dataclass(frozen=True, slots=True)
class LostLedger:
    """A ledger to be recovered.

    Attributes:
        owner: Site whose ledger it is.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
        key: The site's signing key.
        store: The ledger's own store, as it was restored; may be empty.
        lost_key: Public key, hex, that nobody has any more and ``key`` takes the place of.
    """

    owner: str
    dataset: str
    unit: str
    key: SigningKey
    store: ObjectStore
    lost_key: str | None = None

    @property
    def public_key(self) -> str:
        """The key that signs from here on, hex."""
        return public_hex(self.key)


@dataclass(frozen=True, slots=True)
class Held:
    """One entry, and who holds it.

    Attributes:
        entry: The entry.
        sha256: Hash of its bytes.
        data: Its bytes.
        is_local: The ledger's own store holds it.
        is_witnessed: A witness holds it.
        is_own: The site itself or a witness of its own holds it.
        is_in_force: The key that signs from here on signed it.
    """

    entry: LedgerEntry
    sha256: str
    data: bytes
    is_local: bool
    is_witnessed: bool
    is_own: bool = False
    is_in_force: bool = False


def collect(
    ledger: LostLedger, witnesses: Sequence[WitnessedStore]
) -> tuple[list[Held], list[str]]:
    """Return every entry that its keys signed, once each, and which own witnesses are away."""
    own = WitnessedStore("ledger", ledger.store, is_own=True)
    found: dict[str, Held] = {}
    for each in _held_by(ledger, own, keys.LEDGER):
        found[each.sha256] = replace(each, is_local=True, is_own=True)
    away = []
    prefix = keys.witness(ledger.owner, ledger.dataset, ledger.unit)
    for witness in witnesses:
        try:
            read = list(_held_by(ledger, witness, prefix))
        except StoreError:
            if witness.is_own:
                away.append(witness.name)
            continue
        for each in read:
            known = found.get(each.sha256, each)
            is_own = known.is_own or witness.is_own
            found[each.sha256] = replace(known, is_witnessed=True, is_own=is_own)
    held = _of_its_keys(ledger, list(found.values()))
    return sorted(held, key=lambda each: (each.entry.seq, each.sha256)), away


def within_reach(held: Sequence[Held]) -> list[Held]:
    """Return the entries that a ledger can have come to, of all that are held, in order of number.

    Args:
        held: As ``collect`` returns them.
    """
    candidates = [e for e in held if e.is_own or e.entry.seq <= HIGHEST_ELSEWHERE]
    last = 0
    for count, each in enumerate(candidates):
        if each.entry.seq > last + REACH:
            return candidates[:count]
        last = each.entry.seq
    return candidates


def _of_its_keys(ledger: LostLedger, found: Sequence[Held]) -> list[Held]:
    own, known = ledger.public_key, keys_of(ledger, found)
    if ledger.lost_key is None and not _handed_on(found, {own}) <= known:
        raise LedgerCorrupt(
            f"the ledger of {ledger.dataset!r} was handed to another key, and this folder holds "
            f"the one before it ({own[:16]}); put the newer key.pem back",
            hint="if it is lost, `fedloom site rotate --lost-key` goes on with a new one",
        )
    return [
        replace(each, is_in_force=signer_of(each.entry, (own,)) == own)
        for each in found
        if is_of_keys(each.entry, known)
    ]


def keys_of(ledger: LostLedger, found: Sequence[Held]) -> frozenset[str]:
    """Return the key that signs from here on, and every key that signed before it."""
    entries = [each.entry for each in found]
    known = keys_before(entries, {ledger.public_key})
    if ledger.lost_key is None:
        return known
    # Nobody can say any more which key of the site was the last one.
    return known | _handed_on(found, keys_before(entries, {ledger.lost_key}))


def _handed_on(found: Sequence[Held], public_keys: Iterable[str]) -> frozenset[str]:
    own = [each.entry for each in found if each.is_own]
    return keys_after([each.entry for each in found], public_keys, trusted=own)


def _held_by(ledger: LostLedger, holder: WitnessedStore, prefix: str) -> Iterable[Held]:
    for seq in sorted(held_sequences(holder.store, prefix)):
        key = keys.witnessed_entry(prefix, seq)
        try:
            data = holder.store.get(key, max_bytes=MAX_ENTRY_BYTES)
            entry = from_bytes(LedgerEntry, data, what=key)
        except ObjectCorrupt:
            continue
        is_of_ledger = (entry.seq, entry.dataset, entry.unit) == (seq, ledger.dataset, ledger.unit)
        if is_of_ledger and to_bytes(entry) == data:
            yield Held(entry, sha256_hex(data), data, is_local=False, is_witnessed=False)
