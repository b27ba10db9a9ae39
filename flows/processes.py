"""Start, watch and stop the long-lived processes of a local stack.

A process leads its own session, writes its output to one log file, is known by pid and start
time, and is healthy when an HTTP address answers or a check of its own says so. Waiting is
bounded, and a process that ends early is reported with the last lines of its log: the reader
should not have to look for the file to learn that a port was taken. Inside
``ended_with_this_process`` nothing survives the process that started it, whatever ends it.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fl_core.errors import PortInUse, ServerFailed
from flows import process_guard
from flows.process_guard import TOKEN_VARIABLE, Group, born_ticks, end_groups, started_ticks

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# What a user's shell says about other servers must not reach ours, nor their clients.
_FOREIGN_PREFIXES = ("PREFECT_", "MLFLOW_", "FEDLOOM_", "AWS_", "WEED_", "PG")

# Children of this process by pid: a dead child stays a zombie until its parent asks for it.
_children: dict[int, tuple[subprocess.Popen[bytes], "ServerProcess"]] = {}
_guards: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A process that this machine runs for a stack.

    Attributes:
        name: What people call it, such as ``prefect`` or ``site north``.
        pid: Leader of its own session and process group.
        url: Address that answers when it is healthy, or an empty string for a worker.
        log_path: Everything it prints.
        started_ticks: Start time in clock ticks since boot; with the pid it names one process.
        token: Random mark in its environment, inherited by its children.
        stop_signal: Signal that asks it to end.
        grace_s: How long it may take to end; SIGKILL follows.
    """

    name: str
    pid: int
    url: str
    log_path: Path
    started_ticks: int
    token: str
    stop_signal: int = signal.SIGTERM
    grace_s: float = 20.0

    @property
    def group(self) -> Group:
        """The process group, as the guard knows it."""
        return Group(self.pid, self.started_ticks, self.token, self.stop_signal, self.grace_s)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        name: What people call it.
        argv: Program and arguments.
        env: Variables on top of ``clean_environment``.
        folder: Working folder; made when absent. Servers read files such as ``.env`` or
            ``prefect.toml`` from it, so each gets an empty one.
        log_path: Output is appended here.
        url: Address that will answer, or empty.
        user: Numeric user and group id to run as, or None for the caller's.
        stop_signal: Signal that asks it to end.
        grace_s: How long it may take to end; SIGKILL follows.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    log_path: Path
    url: str = ""
    user: tuple[int, int] | None = None
    stop_signal: int = signal.SIGTERM
    grace_s: float = 20.0


def free_port() -> int:
    """A TCP port that nobody listens on at 127.0.0.1 now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports that nobody listens on now; held together while they are drawn."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this port at 127.0.0.1."""
    with socket.socket() as probe:
        # Servers set it too: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free_ports(name: str, ports: Sequence[int], *, remedy: str = "") -> None:
    """Refuse to start a server on a port that is taken.

    Raises:
        PortInUse: One of the ports has a listener; the text names it.
    """
    for port in ports:
        if not is_port_free(port):
            raise PortInUse(
                f"port {port} for the {name} server is in use, expected a free port on {LOOPBACK}; "
                + (remedy or "stop the process that listens there or choose another port"),
                hint=f"`ss -ltnp 'sport = :{port}'` shows who listens",
            )


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without settings of other servers, plus ``extra``."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN_PREFIXES)
    }
    # A proxy set for the outside world would be asked for loopback addresses too.
    exempt = [part for part in kept.get("NO_PROXY", kept.get("no_proxy", "")).split(",") if part]
    no_proxy = ",".join(dict.fromkeys([*exempt, LOOPBACK, "localhost"]))
    return {**kept, "NO_PROXY": no_proxy, "no_proxy": no_proxy, "DO_NOT_TRACK": "1", **extra}


def spawn(command: Command) -> ServerProcess:
    """Start a process in its own session and do not wait for it to be healthy."""
    command.folder.mkdir(parents=True, exist_ok=True)
    command.log_path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    user, group = command.user or (None, None)
    with command.log_path.open("ab") as log:
        child = subprocess.Popen(
            list(command.argv),
            cwd=command.folder,
            env={**clean_environment(command.env), TOKEN_VARIABLE: token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=None if group is None else [],
        )
    server = ServerProcess(
        name=command.name,
        pid=child.pid,
        url=command.url,
        log_path=command.log_path,
        started_ticks=born_ticks(child.pid),
        token=token,
        stop_signal=int(command.stop_signal),
        grace_s=command.grace_s,
    )
    _children[child.pid] = child, server
    _tell_guards(json.dumps(asdict(server.group)))
    return server


def children() -> list[ServerProcess]:
    """The processes that this process started and that still run."""
    return [server for _, server in list(_children.values()) if is_alive(server)]


def is_alive(server: ServerProcess) -> bool:
    """Whether the very process that was started still runs."""
    if server.pid in _children:
        _children[server.pid][0].poll()
    return started_ticks(server.pid) == server.started_ticks


def wait_until(
    server: ServerProcess, is_healthy: Callable[[], bool], *, timeout_s: float = 120
) -> ServerProcess:
    """Wait until a check says yes.

    Raises:
        ServerFailed: The process ended, or the time is over; the text ends with the log's last
            lines. The process is stopped before.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not is_alive(server):
            raise _ended_early(server.name, server.log_path)
        if is_healthy():
            return server
        time.sleep(0.1)
    stop(server, timeout_s=2)
    raise ServerFailed(
        f"the {server.name} server was not healthy within {timeout_s:.0f} s, expected an answer "
        f"from {server.url or 'its check'}; its log ends with: {last_lines(server.log_path)}",
        hint=f"the whole log is {server.log_path}",
    )


def wait_healthy(server: ServerProcess, path: str, *, timeout_s: float = 120) -> ServerProcess:
    """Wait until ``GET url + path`` answers 200; errors as ``wait_until``."""
    return wait_until(server, lambda: answers(server.url + path), timeout_s=timeout_s)


def answers(url: str, *, trusted: Path | None = None) -> bool:
    """Whether a GET gives a 2xx answer within seconds; no proxy is asked.

    Args:
        url: HTTP, or HTTPS.
        trusted: PEM of the one certificate that may answer; None trusts the machine's authorities.
    """
    try:
        _fetch(url, trusted)
    except OSError:  # URLError and HTTPError are among them
        return False
    return True


def fetch_text(url: str) -> str:
    """The text at an address on this machine; no proxy is asked.

    Raises:
        OSError: No answer within seconds, or one that is no success.
    """
    return _fetch(url).decode("utf-8", "replace")


def _fetch(url: str, trusted: Path | None = None) -> bytes:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if trusted is not None:
        context = ssl.create_default_context(cafile=trusted)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(url, timeout=2) as response:
        return bytes(response.read())


def _ended_early(name: str, log_path: Path) -> ServerFailed:
    return ServerFailed(
        f"the {name} server ended before it was healthy, expected it to keep running; "
        f"its log ends with: {last_lines(log_path)}",
        hint=f"the whole log is {log_path}",
    )


def last_lines(log_path: Path, *, count: int = 8) -> str:
    """The last lines of a log as one line, for an error text."""
    if not log_path.exists():
        return "(no log)"
    with log_path.open("rb") as log:
        log.seek(max(0, log_path.stat().st_size - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-count:]) or "(empty)"


def stop(server: ServerProcess, *, timeout_s: float | None = None) -> bool:
    """End a process and its whole group: its stop signal, a wait, then SIGKILL.

    Args:
        server: What to end.
        timeout_s: How long it may take, or None for the time that this server is known to need.

    Returns:
        Whether it ended by itself; False when SIGKILL was needed. A process that is gone already,
        or whose pid belongs to somebody else by now, counts as ended.
    """
    return not stop_all([server], timeout_s=timeout_s)


def stop_all(
    servers: Sequence[ServerProcess], *, timeout_s: float | None = None
) -> list[ServerProcess]:
    """End several processes at once, as ``stop``; returns those that needed SIGKILL."""
    groups = [server.group for server in servers]
    if timeout_s is not None:
        groups = [replace(group, grace_s=timeout_s) for group in groups]
    killed = {group.pid for group in end_groups(groups)}
    for server in servers:
        if server.pid in _children and _children[server.pid][0].poll() is not None:
            _children.pop(server.pid, None)
        _tell_guards(json.dumps({"forget": server.pid}))
    return [server for server in servers if server.pid in killed]


@contextlib.contextmanager
def ended_with_this_process() -> Iterator[None]:
    """Make sure that what is started inside does not outlive a failure of this process.

    When this process ends inside the context, also by SIGKILL, or leaves it by an exception, all
    processes started inside and not stopped since are ended. Leaving it normally releases them:
    they go on.
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(process_guard.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _guards.append(guard)
    try:
        yield
    except BaseException:
        _guards.remove(guard)
        guard.communicate()  # closes the pipe, on which the guard ends what it watches
        raise
    _guards.remove(guard)
    guard.kill()
    guard.communicate()


def _tell_guards(line: str) -> None:
    for guard in _guards:
        if guard.stdin is not None:
            try:
                guard.stdin.write(line.encode() + b"\n")
                guard.stdin.flush()
            except BrokenPipeError:
                logger.warning("process guard is gone, a killed command may leave servers behind")
