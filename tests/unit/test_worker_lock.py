"""The lock of a work pool's worker: one holder, inherited by its child, a note that survives."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from fl_core.errors import ServerFailed
from flows.worker_lock import WorkerLock

RUN = UUID("0196a1a2-0000-7000-8000-000000000001")


def test_second_worker_is_refused_until_the_first_releases(tmp_path: Path) -> None:
    path = tmp_path / "made" / "pool.lock"
    first = WorkerLock(path, wait_s=0)

    with pytest.raises(ServerFailed, match="expected one per work pool"):
        WorkerLock(path, wait_s=0.2)
    first.release()

    WorkerLock(path, wait_s=0).release()


def test_lock_stays_while_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    path = tmp_path / "pool.lock"
    lock = WorkerLock(path, wait_s=0)
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(lock.descriptor,),
    )

    lock.release()

    with pytest.raises(ServerFailed):
        WorkerLock(path, wait_s=0)
    child.kill()
    child.communicate()
    WorkerLock(path, wait_s=5).release()


def test_next_worker_reads_the_run_that_was_in_hand(tmp_path: Path) -> None:
    path = tmp_path / "pool.lock"
    lock = WorkerLock(path, wait_s=0)
    lock.write(RUN)
    lock.release()

    again = WorkerLock(path, wait_s=0)

    assert again.read() == RUN
    again.write(None)
    assert again.read() is None
    again.release()


@pytest.mark.parametrize("text", ["", "0196a1a2-0000", "\udcff" * 3, "not a run at all"])
def test_half_written_note_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pool.lock"
    path.write_bytes(text.encode(errors="surrogateescape"))

    lock = WorkerLock(path, wait_s=0)

    assert lock.read() is None
    lock.release()
