"""What stands at a witness, as one look sees it: what was asked for once is not asked again."""

import bisect

from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import ObjectCorrupt, ObjectMissing
from fl_core.privacy.ledger_documents import MAX_ENTRY_BYTES, LedgerEntry


class ReadOnce:
    """A witness as one look sees it: a copy never changes, so it is fetched once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: dict[str, bytes] = {}

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the copy as it was when it was first asked for."""
        if key not in self._seen:
            self._seen[key] = self._store.get(key, max_bytes=max_bytes)
        return self._seen[key]

    def put_once(self, key: str, data: bytes) -> bool:
        """Write to the witness itself."""
        return self._store.put_once(key, data)

    def list(self, prefix: str) -> list[str]:
        """List the witness itself."""
        return self._store.list(prefix)

    def discard(self, key: str) -> None:
        """Pass on what no ledger asks of a witness."""
        self._store.discard(key)


class Copies:
    """What stands at a witness, by one listing or by looking above the ledger's last entry.

    Args:
        store: The witness's.
        prefix: Of the ledger's copies.
        last: An entry up to which it holds the ledger for certain; None asks for a listing.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, last: LedgerEntry | None) -> None:
        self.prefix = prefix
        self.last = last
        self._store = store
        self._listed = None if last is not None else store.list(prefix)
        self._held = frozenset(self._listed or ())

    def has(self, seq: int) -> bool:
        """Say whether something stands there; without a listing what is not certain is absent."""
        if self.last is not None:
            return seq <= self.last.seq
        return keys.witnessed_entry(self.prefix, seq) in self._held

    def above(self, seq: int) -> list[int]:
        """Return what stands above ``seq``; without a listing, whether the next one does."""
        if self._listed is None:
            return [seq + 1] if self._stands(seq + 1) else []
        # Keys sort as their numbers do, so what is above stands at the end.
        end = bisect.bisect_right(self._listed, keys.witnessed_entry(self.prefix, seq))
        numbers = (keys.witnessed_seq(self.prefix, key) for key in self._listed[end:])
        return [number for number in numbers if number is not None]

    def _stands(self, seq: int) -> bool:
        key = keys.witnessed_entry(self.prefix, seq)
        try:
            self._store.get(key, max_bytes=MAX_ENTRY_BYTES)
        except ObjectMissing:
            return False
        except ObjectCorrupt:
            return True
        return True
