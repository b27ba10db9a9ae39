"""One folder of a store as a store of its own.

A ledger spells its keys from its own root, whatever it lies in: a site's folder, or the prefix of
a campaign's store that holds the federation's ledger.
"""

from fl_core.artifacts.store import ObjectStore, require_key, require_prefix


class Below:
    """The objects of ``store`` whose keys start with ``prefix``, by the rest of their keys.

    Args:
        store: The whole store; its promises are this one's.
        prefix: With a trailing slash.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, require_prefix(prefix)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes; raises as the whole store does."""
        return self._store.get(self._prefix + require_key(key), max_bytes=max_bytes)

    def put_once(self, key: str, data: bytes) -> bool:
        """Write unless an object exists; say whether this call wrote it."""
        return self._store.put_once(self._prefix + require_key(key), data)

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        found = self._store.list(self._prefix + require_prefix(prefix))
        return [key.removeprefix(self._prefix) for key in found]

    def discard(self, key: str) -> None:
        """Remove an object; raises as the whole store does."""
        self._store.discard(self._prefix + require_key(key))
