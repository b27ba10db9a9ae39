"""Processes are started, recognised and ended as a whole, and never mistaken for a stranger."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fl_core.errors import PortInUse, ServerFailed
from flows.process_guard import members, watched_groups
from flows.processes import (
    Command,
    ServerProcess,
    clean_environment,
    free_ports,
    is_alive,
    last_lines,
    require_free_ports,
    spawn,
    stop,
    wait_until,
)

STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"
WITH_CHILD = "sleep 300 & echo up; wait"
ORPHANS = "sleep 300 & echo up; exit 0"


def shell(tmp_path: Path, script: str, **changes: object) -> Command:
    command = Command(
        name="shell",
        argv=["/bin/sh", "-c", script],
        env={},
        folder=tmp_path / "work",
        log_path=tmp_path / "shell.log",
    )
    return replace(command, **changes)  # type: ignore[arg-type]


def eventually(is_true: object, *, limit_s: float = 20) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if is_true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def said_up(server: ServerProcess) -> bool:
    return "up" in server.log_path.read_text()


@pytest.fixture
def started() -> Iterator[list[ServerProcess]]:
    servers: list[ServerProcess] = []
    yield servers
    for server in servers:
        stop(server, timeout_s=0)


def test_process_leads_its_own_session(tmp_path, started):
    server = spawn(shell(tmp_path, "sleep 300"))
    started.append(server)

    assert os.getsid(server.pid) == server.pid
    assert is_alive(server)


def test_stop_ends_the_whole_group(tmp_path, started):
    server = spawn(shell(tmp_path, WITH_CHILD))
    started.append(server)
    eventually(lambda: len(members(server.group)) == 2)

    ended_by_itself = stop(server)

    assert ended_by_itself
    assert members(server.group) == []
    assert not is_alive(server)


def test_process_that_ignores_the_stop_signal_is_killed(tmp_path, started):
    server = spawn(shell(tmp_path, STUBBORN))
    started.append(server)
    eventually(lambda: said_up(server))

    ended_by_itself = stop(server, timeout_s=0.3)

    assert not ended_by_itself
    assert not is_alive(server)


def test_orphans_of_a_dead_leader_are_ended(tmp_path, started):
    server = spawn(shell(tmp_path, ORPHANS))
    started.append(server)
    eventually(lambda: not is_alive(server))
    assert len(members(server.group)) == 1

    stop(server)

    assert members(server.group) == []


def test_recycled_pid_is_left_alone(tmp_path, started):
    stranger = spawn(shell(tmp_path, "sleep 300"))
    started.append(stranger)
    old_record = replace(stranger, started_ticks=stranger.started_ticks - 1)

    stop(old_record, timeout_s=0)

    assert not is_alive(old_record)
    assert is_alive(stranger)


def test_strangers_in_the_group_of_a_dead_leader_are_left_alone(tmp_path, started):
    server = spawn(shell(tmp_path, ORPHANS))
    started.append(server)
    eventually(lambda: not is_alive(server))
    other_token = replace(server, token="somebody-else")

    stop(other_token, timeout_s=0)

    assert len(members(server.group)) == 1


def test_stopping_twice_is_harmless(tmp_path):
    server = spawn(shell(tmp_path, "sleep 300"))

    stop(server)

    assert stop(server)


def test_process_that_ends_early_is_reported_with_its_log(tmp_path):
    server = spawn(shell(tmp_path, "echo first; echo 'address already in use'; exit 3"))

    with pytest.raises(ServerFailed, match=r"ended before it was healthy.*address already in use"):
        wait_until(server, lambda: False)


def test_process_that_never_becomes_healthy_is_stopped_and_reported(tmp_path):
    server = spawn(shell(tmp_path, "echo 'still thinking'; sleep 300"))
    eventually(lambda: "thinking" in server.log_path.read_text())

    with pytest.raises(ServerFailed, match=r"not healthy within 0 s.*still thinking"):
        wait_until(server, lambda: False, timeout_s=0.2)
    assert not is_alive(server)


def test_port_in_use_is_refused_by_number():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        with pytest.raises(PortInUse, match=f"port {port} for the mlflow server is in use"):
            require_free_ports("mlflow", [port])


def test_reserved_ports_are_distinct():
    ports = free_ports(50)

    assert len(set(ports)) == 50


@pytest.mark.parametrize(
    "name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI", "FEDLOOM_STORE", "AWS_PROFILE", "PGHOST"]
)
def test_settings_of_other_servers_do_not_reach_a_process(name, monkeypatch):
    monkeypatch.setenv(name, "from-the-shell")

    assert name not in clean_environment({})
    assert clean_environment({name: "ours"})[name] == "ours"


def test_loopback_is_exempt_from_proxies_and_other_exemptions_stay(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")

    assert clean_environment({})["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_log_excerpt_is_one_line_of_the_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(100)) + "\n\n")

    assert last_lines(log, count=2) == "line 98 | line 99"


OWNER = """
import sys, time
from pathlib import Path
from flows.processes import Command, ended_with_this_process, spawn
folder = Path(sys.argv[1])
with ended_with_this_process():
    argv = ["/bin/sh", "-c", "sleep 300 & wait"]
    server = spawn(Command("shell", argv, {}, folder, folder / "log"))
    print(server.pid, server.started_ticks, server.token, flush=True)
    if sys.argv[2] == "raise":
        raise SystemExit(3)
    if sys.argv[2] == "wait":
        time.sleep(300)
"""


def run_owner(tmp_path: Path, way: str) -> tuple[subprocess.Popen[str], ServerProcess]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), way], stdout=subprocess.PIPE, text=True
    )
    pid, ticks, token = owner.stdout.readline().split()
    return owner, ServerProcess("shell", int(pid), "", tmp_path / "log", int(ticks), token)


def test_nothing_outlives_an_owner_that_was_killed(tmp_path, started):
    owner, server = run_owner(tmp_path, "wait")
    started.append(server)
    eventually(lambda: len(members(server.group)) == 2)

    owner.kill()
    owner.communicate()

    assert eventually(lambda: members(server.group) == [])


def test_nothing_outlives_an_owner_that_fails(tmp_path, started):
    owner, server = run_owner(tmp_path, "raise")
    started.append(server)

    owner.communicate()

    assert owner.returncode == 3
    assert members(server.group) == []


def test_process_goes_on_when_its_owner_lets_it_go(tmp_path, started):
    owner, server = run_owner(tmp_path, "release")
    started.append(server)

    owner.communicate()

    assert not eventually(lambda: members(server.group) == [], limit_s=0.5)


def test_guard_watches_what_was_started_and_forgets_what_was_stopped(tmp_path, started):
    first = spawn(shell(tmp_path, "sleep 300", stop_signal=signal.SIGINT, grace_s=3))
    second = spawn(shell(tmp_path, "sleep 300"))
    started.extend([first, second])
    orders = [json.dumps(asdict(each.group)) for each in (first, second)]

    watched = watched_groups([*orders, json.dumps({"forget": second.pid})])

    assert watched == [first.group]
