"""A worker's lease: two heartbeats missed, by one clock, whatever other clocks say."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Worker

from fl_core.errors import ServerFailed
from flows.worker_leases import WorkerLeases

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Server:
    """Answers the one request that leases make, and counts it."""

    def __init__(self, *workers, clock=None):
        self.workers, self.asked = list(workers), 0
        self.clock, self.answers_after_s = clock, 0.0

    def read_workers_for_work_pool(self, pool):
        assert pool == "site-a"
        self.asked += 1
        if self.clock is not None:
            self.clock.now += self.answers_after_s
        return self.workers


def worker(heard=LONG_AGO, interval=10):
    return Worker(
        name="w",
        work_pool_id=uuid4(),
        last_heartbeat_time=heard,
        heartbeat_interval_seconds=interval,
    )


def lost_after(leases, server, clock, seconds):
    """Look every second, as the coordinator does while a round is open; return the last verdict."""
    whole, rest = divmod(seconds, 1)
    steps = [1.0] * int(whole) + ([rest] if rest or not whole else [])
    found = set()
    for step in steps:
        clock.now += step
        with leases.look():
            found = leases.lost(server, ["site-a"])
    return found


def test_worker_whose_heartbeat_stands_still_for_two_intervals_is_lost():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)

    found = [lost_after(leases, server, clock, s) for s in (0, 5, 15, 0.1)]

    assert found == [set(), set(), set(), {"site-a"}]


def test_heartbeat_that_moves_keeps_the_lease_however_old_its_time_is():
    # The server's clock is 25 years behind ours, which must not matter.
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)

    for number in range(1, 10):
        server.workers = [worker(LONG_AGO + timedelta(seconds=10 * number))]
        assert lost_after(leases, server, clock, 10) == set()


def test_lost_worker_that_is_heard_of_again_has_its_lease_back():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 0)
    assert lost_after(leases, server, clock, 30) == {"site-a"}

    server.workers = [worker(LONG_AGO + timedelta(hours=1))]

    assert lost_after(leases, server, clock, 10) == set()


def test_second_worker_of_a_pool_keeps_it_alive():
    clock, server = Clock(), Server(worker(), worker())
    leases = WorkerLeases(clock=clock)

    for number in range(1, 7):
        server.workers[1] = worker(LONG_AGO + timedelta(seconds=10 * number))
        assert lost_after(leases, server, clock, 10) == set()


def test_pool_that_never_had_a_worker_is_lost_after_twice_the_usual_interval():
    clock, server = Clock(), Server()
    leases = WorkerLeases(clock=clock)

    # Prefect takes 30 s where a worker states no interval.
    found = [lost_after(leases, server, clock, s) for s in (0, 60, 1)]

    assert found == [set(), set(), {"site-a"}]


def test_server_is_asked_once_in_four_seconds_however_often_one_looks():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)

    for _ in range(12):
        lost_after(leases, server, clock, 1)

    assert server.asked == 3


def test_worker_is_silent_after_one_interval_and_lost_after_two():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 0)
    fresh = leases.is_silent("site-a")

    lost = lost_after(leases, server, clock, 11)

    assert (fresh, lost, leases.is_silent("site-a")) == (False, set(), True)
    assert leases.is_silent("site-never-asked") is False


def test_heartbeat_that_came_after_the_last_answer_is_asked_for_before_the_verdict():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 17)

    # The server is asked at 16 s and would not be again before 20.
    server.workers = [worker(LONG_AGO + timedelta(seconds=27))]

    assert lost_after(leases, server, clock, 4) == set()


def refused_for(leases, clock, seconds):
    """Let the server be away for so long, as one that is asked every three seconds."""
    for _ in range(0, seconds, 3):
        clock.now += 3
        with pytest.raises(ServerFailed), leases.look():
            raise ServerFailed("no prefect server answers")


@pytest.mark.parametrize("away_s", [6, 15, 60, 3600], ids=str)
def test_time_in_which_prefect_was_away_is_nobodys_silence(away_s):
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 9)

    refused_for(leases, clock, away_s)
    back = [lost_after(leases, server, clock, s) for s in (1, 19)]
    gone = lost_after(leases, server, clock, 2)

    assert back == [set(), set()]
    assert gone == {"site-a"}


def test_server_that_answers_late_for_want_of_its_database_blames_no_worker():
    # Prefect's client repeats a request that is answered 503, after 2, 4 and 8 s.
    clock = Clock()
    server = Server(worker(), clock=clock)
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 9)

    server.answers_after_s = 14
    late = lost_after(leases, server, clock, 4)
    server.answers_after_s = 0

    assert late == set()
    assert lost_after(leases, server, clock, 19) == set()
    assert lost_after(leases, server, clock, 2) == {"site-a"}


def test_answer_to_an_earlier_request_of_the_look_that_is_late_blames_no_worker():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 9)

    with leases.look():
        clock.now += 14
        late = leases.lost(server, ["site-a"])

    assert late == set()
    assert leases.is_silent("site-a") is False


def test_many_pools_that_are_asked_one_after_another_are_no_late_answer():
    clock = Clock()
    leases = WorkerLeases(clock=clock)
    pools = [f"site-{n}" for n in range(40)]

    class Slow:
        def read_workers_for_work_pool(self, _pool):
            clock.now += 0.25
            return [worker()]

    def looked():
        with leases.look():
            return leases.lost(Slow(), pools)

    # Ten seconds a look, forty answers in each.
    found = [looked() for _ in range(4)]

    assert found[:2] == [set(), set()]
    assert found[-1] == set(pools)


def test_time_in_which_nobody_looked_is_one_missed_heartbeat_at_most():
    clock, server = Clock(), Server(worker())
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 1)

    # An evaluation of ten minutes lies between two rounds.
    clock.now += 600
    found = lost_after(leases, server, clock, 0)
    silent = leases.is_silent("site-a")

    assert found == set()
    assert silent is True
    assert lost_after(leases, server, clock, 9) == set()
    assert lost_after(leases, server, clock, 2) == {"site-a"}
