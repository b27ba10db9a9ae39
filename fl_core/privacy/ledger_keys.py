"""Which keys sign a ledger: one after the other, each handed over to by the one before it.

A ledger outlives its site's keys. A ``rotated`` entry names the key that signed up to it and the
one that signs from it on, and both have signed it: the old key because only its holder may hand
over, the new one because whoever trusts the new key trusts with it all that stands before. So who
knows the key in force now, as a roster does, can check the whole ledger, and nobody can put an
invented history under a key that is not theirs. Where the old key is lost the new one signs alone:
that the new key is the site's is then what two people have confirmed for the roster.
"""

from collections.abc import Iterable, Sequence

from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.updates.signing import verify_old_signature, verify_signature


def is_rotation(entry: LedgerEntry) -> bool:
    """Say whether an entry hands a ledger over, with every signature on it that it needs."""
    if entry.kind != "rotated" or not verify_signature(entry, str(entry.new_key)):
        return False
    return entry.old_signature is None or verify_old_signature(entry, str(entry.old_key))


def is_signed_under(entry: LedgerEntry, public_key: str) -> bool:
    """Say whether an entry may stand where ``public_key`` is in force: signed, or handing over."""
    if entry.kind == "rotated":
        return entry.old_key == public_key and is_rotation(entry)
    return verify_signature(entry, public_key)


def first_key(entries: Iterable[LedgerEntry], last_key: str) -> str:
    """Return the key that signed a ledger's genesis.

    Args:
        entries: The ledger's entries in order; what is no sound rotation is passed over.
        last_key: The key in force now, hex; the first one where there was no rotation.
    """
    return next((str(each.old_key) for each in entries if is_rotation(each)), last_key)


def keys_before(entries: Iterable[LedgerEntry], public_keys: Iterable[str]) -> frozenset[str]:
    """Return these keys and all that, by sound rotations among the entries, came before them."""
    rotations = [each for each in entries if is_rotation(each)]
    found = set(public_keys)
    while earlier := {str(e.old_key) for e in rotations if e.new_key in found} - found:
        found |= earlier
    return frozenset(found)


def keys_after(
    entries: Iterable[LedgerEntry], public_keys: Iterable[str], *, trusted: Iterable[LedgerEntry]
) -> frozenset[str]:
    """Return these keys and all that the ledger was handed to after them.

    Args:
        entries: Where a rotation counts if the key that hands over signed it.
        public_keys: Keys to begin with.
        trusted: Where one that names a lost key counts too: what the site itself wrote down.
    """
    signed = (each for each in entries if each.old_signature is not None)
    rotations = [each for each in (*signed, *trusted) if is_rotation(each)]
    found = set(public_keys)
    while later := {str(e.new_key) for e in rotations if e.old_key in found} - found:
        found |= later
    return frozenset(found)


def is_of_keys(entry: LedgerEntry, public_keys: Iterable[str]) -> bool:
    """Say whether one of a ledger's keys has signed an entry, wherever it stands.

    A rotation counts for the key that takes over, and for the one that hands over where it signed;
    one that merely names a key as lost proves nothing about it.
    """
    known = frozenset(public_keys)
    if entry.kind == "rotated":
        hands_over = entry.old_key in known and entry.old_signature is not None
        return is_rotation(entry) and (entry.new_key in known or hands_over)
    return any(verify_signature(entry, key) for key in sorted(known))


def signer_of(entry: LedgerEntry, public_keys: Sequence[str]) -> str | None:
    """Return which of these keys is in force after an entry; None if it is signed by none."""
    if entry.kind == "rotated":
        return entry.new_key if is_rotation(entry) and entry.new_key in public_keys else None
    return next((key for key in public_keys if verify_signature(entry, key)), None)
