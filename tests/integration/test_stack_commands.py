"""`fedloom up`, `down` and `doctor` as a person at a terminal uses them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from flows.local_stack import connect, stop
from flows.process_guard import members
from flows.stack_file import recorded_processes
from tasks.invite import read_invite

FEDLOOM = [sys.executable, "-m", "flows.cli.main"]
PROCESSES = {"postgres", "s3", "prefect", "mlflow", "gateway", "coordinator", "evaluation"}


@pytest.fixture(scope="module")
def home(new_home) -> Iterator[Path]:
    folder = new_home()
    # Where tests run in the background, a shell has them and their children ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield folder
    signal.signal(signal.SIGINT, before)
    stop(folder)


def fedloom(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FEDLOOM, *words], capture_output=True, text=True, check=False)


def up(
    home: Path, *, stderr: int | IO[bytes] = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    """Start `fedloom up` in the foreground and wait for its document."""
    command = subprocess.Popen(
        [*FEDLOOM, "up", "--home", str(home), "--json"],
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    lines = []
    while not lines or lines[-1] != b"}\n":
        line = command.stdout.readline()
        assert line, "up ended before it was up"
        lines.append(line)
    return command, json.loads(b"".join(lines))


def all_gone(groups) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(members(group) for group in groups):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="terminated", marks=pytest.mark.slow),
    ],
)
def test_interrupted_foreground_stack_ends_cleanly(home, number):
    command, document = up(home)
    groups = [each.group for each in recorded_processes(home).values()]
    report = fedloom("doctor", "--home", str(home), "--json")

    command.send_signal(number)
    rest, _ = command.communicate()

    assert set(document["processes"]) == PROCESSES
    assert read_invite(Path(document["gateway"]["invite"])).url == document["gateway"]["url"]
    assert rest == b""
    assert command.returncode == 0
    assert all_gone(groups)
    assert recorded_processes(home) == {}
    assert report.returncode == 0, report.stderr
    checks = {each["name"]: each["verdict"] for each in json.loads(report.stdout)["checks"]}
    looked_at = ("prefect", "mlflow", "store", "clock of store", "gateway's certificate")
    assert {name: checks[name] for name in looked_at} == dict.fromkeys(looked_at, "ok")


def test_nothing_outlives_a_foreground_stack_that_was_killed(home):
    command, _ = up(home)
    groups = [each.group for each in recorded_processes(home).values()]

    command.kill()
    command.communicate()

    assert all_gone(groups)
    assert connect(home) is None


@pytest.mark.slow
def test_foreground_stack_ends_when_a_server_dies_and_says_which(home, tmp_path):
    with (tmp_path / "stderr").open("wb") as stderr:
        command, document = up(home, stderr=stderr)
    groups = [each.group for each in recorded_processes(home).values()]

    os.kill(document["processes"]["s3"], signal.SIGKILL)
    command.communicate()

    assert command.returncode == 1
    assert "error: the s3 process ended" in (tmp_path / "stderr").read_text()
    assert all_gone(groups)


@pytest.mark.slow
def test_detached_stack_stays_until_it_is_taken_down(home):
    started = fedloom("up", "--home", str(home), "--detach", "--json")
    again = fedloom("up", "--home", str(home), "--json")
    refused = fedloom("up", "--home", str(home), "--gateway-host", "fedloom.example.org")
    os.kill(recorded_processes(home)["gateway"].pid, signal.SIGKILL)
    mended = fedloom("up", "--home", str(home), "--json")
    groups = [each.group for each in recorded_processes(home).values()]
    alive = all(members(group) for group in groups)

    ended = fedloom("down", "--home", str(home), "--json")

    assert {each.returncode for each in (started, again, mended, ended)} == {0}
    assert alive
    assert refused.returncode == 2
    assert "runs with gateway hosts none" in " ".join(refused.stderr.split())
    first, second = json.loads(started.stdout), json.loads(again.stdout)
    assert first["processes"] == second["processes"]
    third = json.loads(mended.stdout)["processes"]
    assert {name for name in third if third[name] != first["processes"][name]} == {"gateway"}
    assert set(json.loads(ended.stdout)["stopped"]) == PROCESSES
    assert all_gone(groups)
    assert json.loads(fedloom("down", "--home", str(home), "--json").stdout)["stopped"] == []


def test_taken_port_ends_up_with_exit_code_2_and_one_message(home):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        answer = fedloom("up", "--home", str(home), "--mlflow-port", str(port), "--json")

    assert answer.returncode == 2
    assert answer.stdout == ""
    assert f"error: port {port} for the mlflow server is in use" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_doctor_finds_a_stack_that_is_down_and_says_how_to_start_it(home):
    fedloom("down", "--home", str(home))

    report = fedloom("doctor", "--home", str(home), "--json")

    assert report.returncode == 1
    document = json.loads(report.stdout)
    assert not document["healthy"]
    wrong = [each for each in document["checks"] if each["verdict"] == "fail"]
    assert [each["name"] for each in wrong] == ["local stack"]
    assert f"fedloom up --home {home}" in wrong[0]["remedy"]
