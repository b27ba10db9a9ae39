"""The outbox: one plan, two attempts at most, one set of files per exchange."""

import subprocess
import sys

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerConflict, ObjectCorrupt, PolicyRefused, RoundClosed
from fl_core.updates.outbox import Outbox, exclusive

PLAN, OTHER_PLAN = "1" * 64, "2" * 64
PREFIX = keys.exchange("orders", "c" * 64, 1)
NEXT = keys.exchange("orders", "c" * 64, 2)
FILES = {"payload.safetensors": b"delta", "manifest.json": b"{}", "budget.json": b"[]"}


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "outbox")


@pytest.fixture
def outbox(store):
    box = Outbox(store)
    box.require_plan(PREFIX, PLAN)
    return box


def test_committed_files_come_back_from_a_new_process(outbox, store):
    outbox.begin_attempt(PREFIX)

    sent = outbox.commit(PREFIX, FILES)

    assert sent == FILES
    assert Outbox(store).committed(PREFIX) == FILES


def test_nothing_is_committed_before_the_last_write(outbox):
    outbox.begin_attempt(PREFIX)

    assert outbox.committed(PREFIX) is None
    assert not outbox.is_closed(PREFIX)


def test_second_plan_for_an_exchange_is_refused_and_the_first_one_stays(outbox):
    with pytest.raises(PolicyRefused, match="a second plan 2222"):
        outbox.require_plan(PREFIX, OTHER_PLAN)

    outbox.require_plan(PREFIX, PLAN)
    outbox.require_plan(NEXT, OTHER_PLAN)


def test_training_without_a_bound_plan_is_refused(store):
    with pytest.raises(PolicyRefused, match="bound to no plan"):
        Outbox(store).begin_attempt(NEXT)


def test_commit_without_an_attempt_is_refused(outbox):
    with pytest.raises(PolicyRefused, match="was not begun"):
        outbox.commit(PREFIX, FILES)


def test_attempt_whose_process_died_is_tried_once_more_and_never_a_third_time(outbox):
    assert outbox.begin_attempt(PREFIX) == 1
    assert outbox.begin_attempt(PREFIX) == 2

    with pytest.raises(RoundClosed, match="2 trainings died; it stays charged"):
        outbox.begin_attempt(PREFIX)
    assert outbox.is_closed(PREFIX)


def test_second_attempt_may_commit(outbox):
    outbox.begin_attempt(PREFIX)
    outbox.begin_attempt(PREFIX)

    assert outbox.commit(PREFIX, FILES) == FILES


def test_caught_failure_is_never_trained_again(outbox, store):
    outbox.begin_attempt(PREFIX)

    assert outbox.mark_failed(PREFIX, "out_of_memory")

    with pytest.raises(RoundClosed, match="has failed; nothing is trained"):
        Outbox(store).begin_attempt(PREFIX)
    assert outbox.committed(PREFIX) is None
    assert outbox.is_closed(PREFIX)


def test_update_of_a_zombie_does_not_leave_after_its_retry_failed(outbox):
    outbox.begin_attempt(PREFIX)
    outbox.begin_attempt(PREFIX)
    outbox.mark_failed(PREFIX, "training")

    with pytest.raises(RoundClosed, match="must not leave"):
        outbox.commit(PREFIX, FILES)

    assert outbox.committed(PREFIX) is None


def test_failure_after_a_commit_changes_nothing(outbox):
    outbox.begin_attempt(PREFIX)
    outbox.commit(PREFIX, FILES)

    assert not outbox.mark_failed(PREFIX, "upload")

    assert outbox.committed(PREFIX) == FILES


def test_committed_exchange_is_not_trained_again(outbox):
    outbox.begin_attempt(PREFIX)
    outbox.commit(PREFIX, FILES)

    with pytest.raises(RoundClosed, match="has committed"):
        outbox.begin_attempt(PREFIX)


def test_racing_commit_gets_what_is_stored_and_files_never_mix(outbox):
    outbox.begin_attempt(PREFIX)
    outbox.begin_attempt(PREFIX)
    outbox.commit(PREFIX, FILES)

    late = outbox.commit(PREFIX, {"payload.safetensors": b"another draw", "extra.json": b"x"})

    assert late == FILES


def test_exchanges_do_not_touch_each_other(outbox):
    outbox.require_plan(NEXT, PLAN)
    outbox.begin_attempt(PREFIX)
    outbox.mark_failed(PREFIX, "training")

    assert outbox.begin_attempt(NEXT) == 1
    assert outbox.commit(NEXT, FILES) == FILES


@pytest.mark.parametrize("files", [{}, {"../x": b""}, {"a/b": b""}, {"": b""}, {".x": b""}])
def test_files_need_plain_names(outbox, files):
    outbox.begin_attempt(PREFIX)

    with pytest.raises(ValueError, match="plain names"):
        outbox.commit(PREFIX, files)


def _files_folder(tmp_path):
    return tmp_path / "outbox" / PREFIX / "files"


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_damaged_outbox_is_corrupt_and_not_sent(tmp_path, damage):
    box = Outbox(LocalStore(tmp_path / "outbox"))
    box.require_plan(PREFIX, PLAN)
    box.begin_attempt(PREFIX)
    box.commit(PREFIX, FILES)
    victim = min(_files_folder(tmp_path).iterdir())
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(b"flipped")

    with pytest.raises(ObjectCorrupt, match="committed"):
        box.committed(PREFIX)


HOLDER = """
import sys
from pathlib import Path
from fl_core.updates.outbox import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def test_two_processes_never_train_one_dataset(tmp_path, holder):
    with (
        pytest.raises(LedgerConflict, match="another process works on this dataset"),
        exclusive(tmp_path / "lock"),
    ):
        pytest.fail("the lock was given twice")

    holder.stdin.close()
    holder.wait(60)
    with exclusive(tmp_path / "lock"):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait(60)

    with exclusive(tmp_path / "lock"):
        pass


def test_lock_excludes_within_one_process_too(tmp_path):
    with (
        exclusive(tmp_path / "lock"),
        pytest.raises(LedgerConflict),
        exclusive(tmp_path / "lock"),
    ):
        pytest.fail("the lock was given twice")
