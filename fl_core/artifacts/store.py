"""What every store of objects can do.

Three methods, because the whole round protocol needs no more: an object is written once and never
replaced, so whoever reads a key reads what everybody else reads. Deletion belongs to retention
and is not part of the protocol.
"""

from typing import Protocol


class ObjectStore(Protocol):
    """Write-once objects by key; keys are relative paths with ``/``."""

    def get(self, key: str) -> bytes:
        """Return the object's bytes.

        Raises:
            ObjectMissing: No object under ``key``.
            StoreUnavailable: The store does not answer.
        """

    def put_once(self, key: str, data: bytes) -> bool:
        """Write the object unless one exists.

        Returns:
            True if this call wrote it, False if an object was there before.

        Raises:
            StoreUnavailable: The store does not answer.
        """

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""


def exists(store: ObjectStore, key: str) -> bool:
    """Say whether an object is stored under exactly ``key``."""
    return key in store.list(key)
