"""Find and end process groups, and a guard that ends them when their owner dies.

Every long-lived process of a local stack leads its own session, so that Ctrl-C in a terminal
reaches the command and not its servers. The price is that nothing ends them when the command is
killed. The guard pays it: a tiny process that holds the reading end of a pipe whose writing end
only the owner has. When the owner ends in any way, also by SIGKILL, the pipe closes and the guard
ends what it was told to watch. A parent-death signal would not do: it follows the thread that
forked, is lost when the user id changes, and reaches no grandchildren.

The file is run by its path with ``python -I -S``, so it imports the standard library only.
Processes are named by pid *and* start time; a recycled pid is never signalled. Linux only.
"""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TOKEN_VARIABLE = "FEDLOOM_PROCESS"  # noqa: S105 -- the name of a variable, not a secret
_PROC = Path("/proc")


@dataclass(frozen=True)
class Group:
    """One process group that somebody started as leader of its own session.

    Attributes:
        pid: The leader's pid, which is also the id of the group and of the session.
        started_ticks: The leader's start time in clock ticks since boot (field 22 of proc's stat).
        token: Value of ``FEDLOOM_PROCESS`` in the group's environment; tells orphans of a dead
            leader from a stranger that got its pid.
        stop_signal: The polite signal.
        grace_s: How long it may take after the polite signal; then SIGKILL follows.
    """

    pid: int
    started_ticks: int
    token: str
    stop_signal: int = signal.SIGTERM
    grace_s: float = 20.0


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    group: int
    n_threads: int
    started_ticks: int

    @property
    def is_gone(self) -> bool:
        # A leader is a zombie while its other threads still end, and until the last one has,
        # the process' files and ports are open.
        return self.state in "ZX" and self.n_threads <= 1


def started_ticks(pid: int) -> int | None:
    """The start time of a living process in clock ticks since boot, or None if there is none."""
    stat = _stat(pid)
    return None if stat is None or stat.is_gone else stat.started_ticks


def born_ticks(pid: int) -> int:
    """The start time of a child that its parent has not waited for, whether it lives or not."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} is gone, expected a child not waited for yet")
    return stat.started_ticks


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses, so the fields start after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(pid, fields[0], int(fields[2]), int(fields[17]), int(fields[19]))


def members(group: Group) -> list[int]:
    """Pids of the living processes of a group, the leader included; zombies do not count."""
    leader = started_ticks(group.pid)
    if leader is not None and leader != group.started_ticks:
        return []  # the pid was given to a stranger
    found = []
    for entry in _PROC.iterdir():
        stat = _stat(int(entry.name)) if entry.name.isdigit() else None
        if stat is None or stat.group != group.pid or stat.is_gone:
            continue
        if leader is not None or _carries_token(stat.pid, group.token):
            found.append(stat.pid)
    return found


def _carries_token(pid: int, token: str) -> bool:
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"{TOKEN_VARIABLE}={token}".encode() in environ.split(b"\0")


def end_groups(groups: list[Group]) -> list[Group]:
    """End all processes of the groups: the polite signal, each group's grace, then SIGKILL.

    Returns:
        The groups that needed SIGKILL.
    """
    for group in groups:
        _signal(group, group.stop_signal)
    started = time.monotonic()
    left, killed = _living(groups), []
    while left:
        waited = time.monotonic() - started
        for group in left:
            if waited >= group.grace_s and group not in killed:
                _signal(group, signal.SIGKILL)
                killed.append(group)
        # SIGKILL needs a moment; a process stuck in the kernel may never end.
        left = [g for g in _living(left) if waited < g.grace_s + 5]
        time.sleep(0.02 if left else 0)
    return killed


def _living(groups: list[Group]) -> list[Group]:
    return [group for group in groups if members(group)]


def _signal(group: Group, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if started_ticks(group.pid) != group.started_ticks:
            for pid in members(group):
                os.kill(pid, number)
        elif number in {signal.SIGTERM, signal.SIGKILL}:
            # One call for all: a member that is just forking cannot slip through.
            os.killpg(group.pid, number)
        else:
            # PostgreSQL's postmaster is told alone and ends its own children in order.
            os.kill(group.pid, number)


def watched_groups(lines: list[str]) -> list[Group]:
    """Read the owner's lines: what to end once it is gone."""
    groups: dict[int, Group] = {}
    for line in lines:
        order = json.loads(line)
        if "forget" in order:
            groups.pop(order["forget"], None)
        else:
            groups[order["pid"]] = Group(**order)
    return list(groups.values())


def main() -> None:
    """Read groups from stdin, one JSON object a line, until it closes; then end those watched.

    ``{"forget": pid}`` takes a group off the list.
    """
    # A terminal's Ctrl-C and hang-up are the owner's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    groups = watched_groups(sys.stdin.readlines())
    end_groups(groups)


if __name__ == "__main__":
    main()
