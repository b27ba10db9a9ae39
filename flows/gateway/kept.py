"""Files of adapters that the gateway has read a moment ago, because every site asks for the same.

Only what is named by its content is kept: a store that was restored from an older backup may hold
another plan under a name, and never another adapter.
"""

import re
from collections import OrderedDict

MAX_BYTES = 64 << 20
_ADAPTER = re.compile(r"campaigns/[^/]+/adapters/[0-9a-f]{64}/[^/]+")


class Kept:
    """Bytes and hash of files, the last asked for, within a bound.

    Args:
        max_bytes: Of all files together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._files: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Return a file and its SHA-256, or None where it is not kept."""
        found = self._files.get(key)
        if found is not None:
            self._files.move_to_end(key)
        return found

    def keep(self, key: str, found: tuple[bytes, str]) -> None:
        """Keep a file of an adapter; anything else, and what is too long, is passed over."""
        n_bytes = len(found[0])
        # A quarter, so that one large model does not push out what others are asked for.
        if key in self._files or n_bytes > self._max_bytes // 4 or not _ADAPTER.fullmatch(key):
            return
        self._files[key] = found
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes:
            _, (oldest, _) = self._files.popitem(last=False)
            self._n_bytes -= len(oldest)
