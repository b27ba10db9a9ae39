"""A site's host that is gone: its session does not stay Running, and comes back with it."""

import os
import signal
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from session_states import session_runs
from worker_stack import Stack, Worker, is_alive, wait_for

from fl_core.errors import ServerFailed
from flows import dispatch, registration
from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect
from flows.session_watch import SessionWatch

pytestmark = pytest.mark.slow
CHOICES = {"allowed": {"site-session": "session_flows.hold"}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("lost")
    with ended_with_this_process(), pytest.MonkeyPatch.context() as patch:
        # The lease is two of the worker's own intervals.
        patch.setenv("PREFECT_WORKER_HEARTBEAT_SECONDS", "2")
        server = start_prefect(folder / "server")
        made = Stack(folder, server)
        try:
            with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
                registration.register(sites=("north", "south", "east", "west", "cut", "blamed"))
                yield made
        finally:
            made.close()
            stop(made.server)


def kill_host(worker: Worker) -> None:
    """What a power cut does: worker and child are gone, nobody reports anything."""
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()


def test_session_of_a_host_that_is_gone_is_closed_and_waits_for_the_worker_to_come_back(stack):
    first = stack.start_worker("site-north", **CHOICES)
    watch = SessionWatch("gone", sites=("north",), run="r1")
    watch()
    lost = session_runs("gone")["north"].run_id
    wait_for(lambda: dispatch.run_state(lost).state_type == "RUNNING", what="the session runs")
    assert watch() == {"north": "session runs"}

    kill_host(first)
    seen: list[dict[str, str]] = []

    def is_closed() -> bool:
        seen.append(watch())
        return dispatch.run_state(lost).is_final

    wait_for(is_closed, what="the session is closed")
    waiting = session_runs("gone")["north"]
    stack.start_worker("site-north", **CHOICES)

    assert {"north": "worker away"} in seen
    assert dispatch.run_state(lost).state_type == "CRASHED"
    assert dispatch.run_state(lost).message == "worker lost"
    assert (waiting.state_type, waiting.attempts) == ("SCHEDULED", 2)
    wait_for(
        lambda: dispatch.run_state(waiting.run_id).state_type == "RUNNING",
        what="the worker that is back takes the session",
    )


def test_zombie_of_another_campaign_does_not_keep_the_place_of_its_site(stack):
    worker = stack.start_worker("site-south", **CHOICES)
    SessionWatch("forgotten", sites=("south",), run="r1")()
    zombie = session_runs("forgotten")["south"].run_id
    wait_for(lambda: dispatch.run_state(zombie).state_type == "RUNNING", what="the session runs")
    kill_host(worker)

    watch = SessionWatch("next", sites=("south",), run="r2")
    wait_for(lambda: watch() and dispatch.run_state(zombie).is_final, what="the zombie is closed")
    stack.start_worker("site-south", **CHOICES)

    own = session_runs("next")["south"].run_id
    wait_for(lambda: dispatch.run_state(own).state_type == "RUNNING", what="the next one runs")


def test_session_of_a_host_that_is_lost_at_the_end_is_closed_with_the_run(stack):
    worker = stack.start_worker("site-west", **CHOICES)
    watch = SessionWatch("ends", sites=("west",), run="r3", leases=dispatch.leases_of("r3"))
    watch()
    last = session_runs("ends")["west"].run_id
    wait_for(lambda: dispatch.run_state(last).state_type == "RUNNING", what="the session runs")
    watch()
    kill_host(worker)
    wait_for(lambda: dispatch.leases_of("r3").is_silent("site-west"), what="a heartbeat is due")

    dispatch.settle_sessions("ends", run="r3", is_patient=True)

    assert dispatch.run_state(last).state_type == "CRASHED"


def test_worker_that_was_only_cut_off_goes_on_with_its_session(stack):
    worker = stack.start_worker("site-cut", **CHOICES)
    watch = SessionWatch("cut", sites=("cut",), run="r1")
    watch()
    run_id = session_runs("cut")["cut"].run_id
    wait_for(lambda: dispatch.run_state(run_id).state_type == "RUNNING", what="the session runs")
    (child,) = psutil.Process(worker.process.pid).children()

    os.kill(worker.process.pid, signal.SIGSTOP)
    wait_for(lambda: watch() and dispatch.run_state(run_id).is_final, what="it counts as lost")
    os.kill(worker.process.pid, signal.SIGCONT)
    # The worker looks at the state of its run every two seconds.
    for _ in heartbeats(stack, 4, pool="site-cut"):
        time.sleep(0.5)

    assert dispatch.run_state(run_id).state_type == "CRASHED"
    assert child.is_running()
    assert child.status() != psutil.STATUS_ZOMBIE
    assert session_runs("cut")["cut"].state_type == "SCHEDULED"


def test_session_whose_worker_lives_is_left_alone_however_long_it_trains(stack):
    worker = stack.start_worker("site-east", **CHOICES)
    watch = SessionWatch("long", sites=("east",), run="r1")
    watch()
    run_id = session_runs("long")["east"].run_id
    wait_for(lambda: dispatch.run_state(run_id).state_type == "RUNNING", what="the session runs")
    beats = heartbeats(stack, 6, pool="site-east")

    # Three leases long, by the worker's own heartbeat.
    while next(beats, None) is not None:
        assert watch() == {"east": "session runs"}

    assert dispatch.run_state(run_id).state_type == "RUNNING"
    assert is_alive(worker.process.pid)
    assert stack.client.read_flow_run(UUID(run_id)).run_count == 1


def test_server_that_was_away_for_longer_than_a_lease_blames_no_site(stack):
    stack.start_worker("site-blamed", **CHOICES)
    watch = SessionWatch("outage", sites=("blamed",), run="r1")
    watch()
    run_id = session_runs("outage")["blamed"].run_id
    wait_for(lambda: dispatch.run_state(run_id).state_type == "RUNNING", what="the session runs")
    watch()

    stop(stack.server)
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with pytest.raises(ServerFailed):
            watch()
        time.sleep(0.5)
    port = urlsplit(stack.server.url).port
    stack.server = start_prefect(stack.folder / "server", port=port)
    # From the first moment on, when no worker has been heard yet, to three leases later.
    for _ in heartbeats(stack, 6, pool="site-blamed"):
        assert watch() == {"blamed": "session runs"}

    assert dispatch.run_state(run_id).state_type == "RUNNING"
    assert stack.client.read_flow_run(UUID(run_id)).run_count == 1


def heartbeats(stack: Stack, count: int, *, pool: str) -> Iterator[object]:
    """Yield at every look until so many heartbeats of a pool's one worker were seen."""
    seen: set[object] = set()
    while len(seen) <= count:
        (worker,) = stack.client.read_workers_for_work_pool(pool)
        seen.add(worker.last_heartbeat_time)
        yield worker
