"""One worker at a time per pool on this machine, and what the last one left behind.

The lock is an open file that the warm child inherits, so it is free only when worker *and* child
are gone: a worker that is started again after a SIGKILL waits for the old child to end and never
trains beside it. The file holds the id of the run in hand. A run whose worker died without a word
stays Running at the API for ever and keeps the pool's only slot (PrefectHQ/prefect issues 16746,
22664), so the next worker reads the id and closes that run.
"""

import fcntl
import os
import time
from pathlib import Path
from uuid import UUID

from fl_core.errors import ServerFailed

_POLL_S = 0.1


class WorkerLock:
    """Hold a pool's lock file, and keep the id of the run in hand in it.

    Args:
        path: The file; its folder is made if need be.
        wait_s: How long to wait for another holder to end.

    Raises:
        ServerFailed: Another worker of this pool, or its child, still runs.
    """

    def __init__(self, path: Path, *, wait_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() > deadline:
                os.close(self.descriptor)
                raise ServerFailed(
                    f"another worker holds {path}, expected one per work pool; "
                    "stop it before starting this one"
                )
            time.sleep(_POLL_S)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def write(self, run_id: UUID | None) -> None:
        """Note the run in hand durably; None when there is none."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"" if run_id is None else str(run_id).encode(), 0)
        os.fsync(self.descriptor)

    def read(self) -> UUID | None:
        """Return the run in hand, or None; a half-written note counts as none."""
        text = os.pread(self.descriptor, 64, 0).decode("ascii", errors="replace")
        try:
            return UUID(text)
        except ValueError:
            return None

    def release(self) -> None:
        """Close the file; the lock is free when the child has ended too."""
        os.close(self.descriptor)
