"""A store in a folder, durable enough for a ledger.

An object is written to a temporary file, synced, hard-linked to its name and read back; then its
folder is synced, and every folder above it that this store has not synced before. A hard link
fails if the name exists, so of two writers one wins, and whoever sees a name sees whole bytes.
Whoever is *told* of an object (it was there before, or it was read) gets the same promise as its
writer: the folder is synced before the call returns, so nobody acts on an entry that a power cut
would take back; what is known to be durable is not synced again. Files and folders are readable by
their owner only. Network file systems keep none of these promises, so ledgers and outboxes call
``require_local_disk`` first.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from fl_core.artifacts.store import require_key, require_length, require_prefix
from fl_core.errors import ObjectCorrupt, ObjectMissing, PolicyRefused, StoreUnavailable

INCOMING = ".incoming"
_ABANDONED_AFTER_S = 24 * 3600
# Two links within one tick of the kernel's clock leave a folder the same time of change; a second
# is many ticks.
_TICK_NS = 1_000_000_000
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    ]
)


class LocalStore:
    """Write-once objects as files; threads and processes of one machine may share the folder.

    Args:
        root: Folder of the store; made by the first write if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._incoming = self._root / INCOMING
        self._is_prepared = False
        self._anchored: set[Path] = set()
        self._durable: set[str] = set()
        self._synced: dict[Path, int] = {}
        self._floor = next(p for p in self._root.parents if p.is_dir())

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes, or raise ObjectMissing; ObjectCorrupt if there are more."""
        path = self._root / require_key(key)
        with _reporting("read", path):
            try:
                require_length(key, path.stat().st_size, max_bytes)
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ObjectMissing(f"no object under {key!r} in {self._root}") from None
            self._settle_read(key, path.parent)
        return data

    def size(self, key: str) -> int:
        """Return the object's length in bytes, or raise ObjectMissing."""
        path = self._root / require_key(key)
        with _reporting("read", path):
            if not path.is_file():
                raise ObjectMissing(f"no object under {key!r} in {self._root}")
            return path.stat().st_size

    def put_once(self, key: str, data: bytes) -> bool:
        """Write the object unless one exists; it is on the disk when this returns.

        Raises:
            ObjectCorrupt: The disk gave back other bytes than were written.
            StoreUnavailable: The disk is full, read-only or not ours.
        """
        path = self._root / require_key(key)
        with _reporting("write", path):
            self._prepare()
            _make_folders(path.parent)
            is_new = self._write_and_link(path, data)
            self._settle(path.parent)
            self._durable.add(key)
            if is_new and path.read_bytes() != data:
                raise ObjectCorrupt(
                    f"{path} does not read back as it was written; check the disk before going on"
                )
        return is_new

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        start = require_prefix(prefix).rpartition("/")[0]
        folder = self._root / start
        with _reporting("list", folder):
            found = _keys_below(folder, f"{start}/" if start else "")
        return sorted(key for key in found if key.startswith(prefix))

    def discard(self, key: str) -> None:
        """Remove an object; absent already is as good. It stays away after a power cut.

        Raises:
            StoreUnavailable: The folder is read-only or not ours.
        """
        path = self._root / require_key(key)
        with _reporting("remove", path):
            self._durable.discard(key)
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync_folder(path.parent)

    def _write_and_link(self, path: Path, data: bytes) -> bool:
        temporary = self._incoming / secrets.token_hex(16)
        try:
            _write_synced(temporary, data)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _settle(self, folder: Path) -> None:
        """Make all entries of ``folder``, and the folder itself, survive a power cut."""
        _sync_folder(folder)
        while folder not in self._anchored and folder != self._floor:
            # a parent that we may not read was not made by us
            if os.access(folder.parent, os.R_OK):
                _sync_folder(folder.parent)
            self._anchored.add(folder)
            folder = folder.parent

    def _settle_read(self, key: str, folder: Path) -> None:
        """Make an object that was found survive a power cut, unless it is known to."""
        if key in self._durable:
            return
        changed = folder.stat().st_mtime_ns
        if self._synced.get(folder) != changed:
            self._settle(folder)
            if time.time_ns() - changed > _TICK_NS:
                self._synced[folder] = changed
        self._durable.add(key)

    def _prepare(self) -> None:
        """Make the folder of temporary files; drop those of writers that died a day ago."""
        if self._is_prepared:
            return
        _make_folders(self._incoming)
        self._is_prepared = True
        limit = time.time() - _ABANDONED_AFTER_S
        for left in self._incoming.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
                if left.stat().st_mtime < limit:
                    left.unlink()


def require_local_disk(path: Path) -> None:
    """Refuse a folder on a file system that may lose or delay what was synced.

    Args:
        path: Folder of a ledger or outbox; it need not exist yet.

    Raises:
        PolicyRefused: A network or user-space file system, or one that cannot be told.
    """
    if not _MOUNTS.is_file():
        raise PolicyRefused(
            f"cannot tell what file system {path} is on without {_MOUNTS}; run the site on linux"
        )
    kind = file_system(path, _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    if kind in _NETWORK or kind.startswith("fuse."):
        raise PolicyRefused(
            f"{path} is on {kind}, which does not promise that what was synced is on a disk; "
            f"keep ledger and outbox on a local disk"
        )


def file_system(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that ``path`` is on, or would be made on.

    Args:
        path: Any path.
        mountinfo: Text of ``/proc/self/mountinfo`` (proc(5)).
    """
    target = path.resolve()
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(_unescape(left.split(" ")[4]))
        # of two mounts on one point the later one hides the earlier
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _make_folders(folder: Path) -> None:
    if not folder.is_dir():
        _make_folders(folder.parent)
        with contextlib.suppress(FileExistsError):  # another writer was faster
            os.mkdir(folder, 0o700)  # noqa: PTH102  one system call, one line in the crash test


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keys_below(folder: Path | str, start: str) -> list[str]:
    """Return the keys of all files below a folder, each beginning with ``start``."""
    found: list[str] = []
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return found
    with entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_file(follow_symlinks=False):
                found.append(start + name)
            elif entry.is_dir(follow_symlinks=False):
                found += _keys_below(entry.path, f"{start}{name}/")
            elif not entry.is_dir():
                found.append(start + name)
    return found


@contextlib.contextmanager
def _reporting(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"cannot {action} {path}: {error.strerror or error}",
            hint="check that the disk has room and that the folder belongs to this user",
        ) from error
