"""A worker's lease: two heartbeats missed, by one clock, whatever other clocks say."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from prefect.client.schemas.objects import Worker

from flows.worker_leases import WorkerLeases

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class Server:
    """Answers the one request that leases make, and counts it."""

    def __init__(self, *workers):
        self.workers, self.asked = list(workers), 0

    def read_workers_for_work_pool(self, pool):
        assert pool == "site-a"
        self.asked += 1
        return self.workers


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def worker(heard=LONG_AGO, interval=10):
    return Worker(
        name="w",
        work_pool_id=uuid4(),
        last_heartbeat_time=heard,
        heartbeat_interval_seconds=interval,
    )


def lost_after(leases, server, clock, seconds):
    clock.now += seconds
    return leases.lost(server, ["site-a"])


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
    clock, server = Clock(), Server(worker(), worker(LONG_AGO + timedelta(seconds=1)))
    leases = WorkerLeases(clock=clock)
    lost_after(leases, server, clock, 0)

    server.workers[1] = worker(LONG_AGO + timedelta(seconds=60))

    assert lost_after(leases, server, clock, 60) == set()


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
