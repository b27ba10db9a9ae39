"""A store in memory, for simulation and tests.

It keeps the same promises as the others, write-once above all, and passes the same contract
tests; so it is no mock.
"""

import threading

from fl_core.artifacts.store import require_key, require_length, require_prefix
from fl_core.errors import ObjectMissing


class MemoryStore:
    """Objects in a dictionary; safe to share between threads of one process."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes, or raise ObjectMissing; ObjectCorrupt if there are more."""
        try:
            data = self._objects[require_key(key)]
        except KeyError:
            raise ObjectMissing(f"no object under {key!r}") from None
        require_length(key, len(data), max_bytes)
        return data

    def size(self, key: str) -> int:
        """Return the object's length in bytes, or raise ObjectMissing."""
        return len(self.get(key))

    def put_once(self, key: str, data: bytes) -> bool:
        """Write unless an object exists; say whether this call wrote it."""
        require_key(key)
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = bytes(data)
            return True

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        require_prefix(prefix)
        with self._lock:
            return sorted(key for key in self._objects if key.startswith(prefix))

    def discard(self, key: str) -> None:
        """Remove an object; absent already is as good."""
        require_key(key)
        with self._lock:
            self._objects.pop(key, None)
