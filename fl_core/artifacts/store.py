"""What every store of objects can do.

Few methods, because the whole round protocol needs no more: an object is written once and never
replaced, so whoever reads a key reads what everybody else reads. Deletion belongs to retention,
save for the raw updates of central ClientDp, which may not outlive their round.
"""

from typing import Protocol, runtime_checkable

from fl_core.errors import ObjectCorrupt, ObjectMissing

MAX_KEY_BYTES = 900


class ObjectStore(Protocol):
    """Write-once objects by key; keys are relative paths with ``/``."""

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes.

        Args:
            key: The object.
            max_bytes: Longest object that is read into memory; None is unbounded. To be given for
                whatever another party wrote.

        Raises:
            ObjectMissing: No object under ``key``.
            ObjectCorrupt: It is longer than ``max_bytes``; none of it was read.
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

    def discard(self, key: str) -> None:
        """Remove an object that may not stay; absent already is as good.

        Raises:
            StoreUnavailable: The store does not answer, or does not let this be removed.
        """


@runtime_checkable
class SizedStore(ObjectStore, Protocol):
    """A store that says how long an object is, so that room is made before it is read."""

    def size(self, key: str) -> int:
        """Return the object's length in bytes.

        Raises:
            ObjectMissing: No object under ``key``.
            StoreUnavailable: The store does not answer.
        """


TOMBSTONE = b"discarded: this object may not outlive its round\n"


def bury(store: ObjectStore, key: str) -> None:
    """Remove an object and keep its key taken, so that nobody writes there any more.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    while not store.put_once(key, TOMBSTONE) and not is_buried(store, key):
        store.discard(key)


def is_buried(store: ObjectStore, key: str) -> bool:
    """Say whether a key holds what ``bury`` leaves."""
    try:
        return store.get(key, max_bytes=len(TOMBSTONE)) == TOMBSTONE
    except (ObjectCorrupt, ObjectMissing):
        return False


def exists(store: ObjectStore, key: str) -> bool:
    """Say whether an object is stored under exactly ``key``."""
    if not isinstance(store, SizedStore):
        return key in store.list(key)
    try:
        store.size(key)
    except ObjectMissing:
        return False
    return True


def require_length(key: str, found: int, max_bytes: int | None) -> None:
    """Refuse an object that is too long to be read.

    Raises:
        ObjectCorrupt: It has more than ``max_bytes``.
    """
    if max_bytes is not None and found > max_bytes:
        raise ObjectCorrupt(f"object {key!r} has {found} bytes, at most {max_bytes} are read")


def require_key(key: str) -> str:
    """Return ``key`` if every store can hold it and it stays under the store's prefix.

    Raises:
        ValueError: Empty, absolute or too long, a control character or backslash, or a part that
            is empty or starts with a dot (those are the stores' own).
    """
    parts = key.split("/")
    if any(not part or part.startswith(".") for part in parts) or not _is_plain(key):
        raise ValueError(f"{key!r} is no key of a store; use relative parts joined by '/'")
    return key


def require_prefix(prefix: str) -> str:
    """Return ``prefix`` if it is empty or could begin a key.

    Raises:
        ValueError: A part but the last is empty, or a part starts with a dot.
    """
    *folders, last = prefix.split("/")
    is_outside = any(not part or part.startswith(".") for part in folders) or last.startswith(".")
    if is_outside or not _is_plain(prefix):
        raise ValueError(f"{prefix!r} is no prefix of a key; use relative parts joined by '/'")
    return prefix


def _is_plain(text: str) -> bool:
    # isprintable is False for controls and lone surrogates, which have no UTF-8 form
    return text.isprintable() and "\\" not in text and len(text.encode()) <= MAX_KEY_BYTES
