"""Entries of a ledger as a site brings them to a witness, for tests of the way there."""

from datetime import UTC, datetime, timedelta

from fl_core.artifacts.documents import to_bytes
from fl_core.privacy.ledger_documents import NO_ENTRY, LedgerEntry
from fl_core.updates.signing import SigningKey, sign

_BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def copy_at(at: str, key: SigningKey, *, minute: int = 0) -> bytes:
    """Return a signed entry that belongs under a witness' key; another one for each minute."""
    _, _, dataset, unit, name = at.split("/")
    entry = LedgerEntry(
        seq=int(name.removesuffix(".json")),
        dataset=dataset,
        unit=unit,
        kind="genesis",
        time=_BEGAN + timedelta(minutes=minute),
        previous_sha256=NO_ENTRY,
    )
    return to_bytes(sign(entry, key))
