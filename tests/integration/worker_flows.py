"""Flows that the worker tests allow; they leave files, because nothing else may leave a run."""

import os
import time
from pathlib import Path

from prefect import flow, task


@flow(name="touch", persist_result=False)
def touch(path: str) -> None:
    Path(path).write_text(repr(time.time()))


@flow(name="count", persist_result=False)
def count(path: str, number: int) -> None:
    Path(path).write_text(str(number))


@flow(name="work", persist_result=False)
def work(path: str, seconds: float) -> None:
    """Train for a while: the pid first, then a beat every 50 ms, at the end the word done."""
    Path(path).write_text(str(os.getpid()))
    print("a line on stdout is not an answer")  # noqa: T201
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        Path(path + ".beat").write_text(repr(time.time()))
        time.sleep(0.05)
    Path(path + ".done").write_text("done")


@task(persist_result=False)
def fail(row: str) -> None:
    raise ValueError(f"bad row {row}")


@task(persist_result=False)
def time_out(row: str) -> None:
    raise TimeoutError(f"slow row {row}")


@flow(name="fail-in-flow", persist_result=False)
def fail_in_flow(row: str) -> None:
    print(row)  # noqa: T201
    raise ValueError(f"bad row {row}")


@flow(name="fail-in-task", persist_result=False)
def fail_in_task(row: str) -> None:
    fail(row)


@flow(name="time-out-in-task", persist_result=False)
def time_out_in_task(row: str) -> None:
    time_out(row)


@flow(name="time-out-in-flow", persist_result=False)
def time_out_in_flow(row: str) -> None:
    raise TimeoutError(f"slow row {row}")


@flow(name="interrupted", persist_result=False)
def interrupted(row: str) -> None:
    raise KeyboardInterrupt(row)


@flow(name="exit", persist_result=False)
def leave(row: str) -> None:
    raise SystemExit(row)


@flow(name="hold", persist_result=False)
def hold(path: str, megabytes: int) -> None:
    """Take memory and keep it until somebody ends the process."""
    held = bytearray(megabytes << 20)
    held[::4096] = b"x" * len(held[::4096])
    Path(path).write_text(str(len(held)))
    time.sleep(120)


def preloaded() -> None:
    """What the child loads before its first run."""
    Path(os.environ["FEDLOOM_TEST_PRELOAD"]).write_text(str(os.getpid()))
