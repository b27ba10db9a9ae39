"""What one party may use of the gateway: buckets, requests at one time, room in memory."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from flows.gateway.bodies import Bodies, ObjectAnswer
from flows.gateway.limits import AtOnce, Buckets, Limits, Rate, Room
from flows.gateway.server import memory_limits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_bucket_gives_its_burst_and_then_as_much_as_time_brings():
    clock = Clock()
    buckets = Buckets(Rate(burst=3, per_s=2), clock)

    at_once = [buckets.take("north") for _ in range(4)]
    clock.now += 0.5
    later = [buckets.take("north") for _ in range(2)]

    # Empty: the next one comes after half a second at two a second.
    assert at_once == [0, 0, 0, 0.5]
    assert later == [0, 0.5]


def test_bucket_of_one_is_not_the_bucket_of_another():
    buckets = Buckets(Rate(burst=1, per_s=1), Clock())

    assert [buckets.take("north"), buckets.take("north") > 0, buckets.take("south")] == [0, True, 0]


def test_full_pause_fills_a_bucket_to_its_burst_and_not_beyond():
    clock = Clock()
    buckets = Buckets(Rate(burst=2, per_s=1), clock)
    buckets.take("north")

    clock.now += 1000
    taken = [buckets.take("north") for _ in range(3)]

    assert taken == [0, 0, 1]


def test_what_was_done_already_is_paid_off_before_the_next():
    clock = Clock()
    buckets = Buckets(Rate(burst=100, per_s=10), clock)

    buckets.spend("north", 149)
    at_once = buckets.take("north")
    clock.now += 5

    # 49 below nothing, and one to take: 50 at ten a second.
    assert at_once == 5
    assert buckets.take("north") == 0


def test_names_of_strangers_do_not_pile_up():
    clock = Clock()
    buckets = Buckets(Rate(burst=2, per_s=1), clock)

    for number in range(20_000):
        clock.now += 0.01
        buckets.take(f"address-{number}")

    assert len(buckets._levels) <= 4096


def test_empty_bucket_says_when_to_come_again():
    buckets = Buckets(Rate(burst=1, per_s=0.25), Clock())
    buckets.require("north", "requests")

    with pytest.raises(HTTPException) as refused:
        buckets.require("north", "requests")

    assert refused.value.status_code == 429
    assert refused.value.headers == {"Retry-After": "4"}


def test_more_requests_at_one_time_than_allowed_are_refused_until_one_ends():
    at_once = AtOnce(1)

    with at_once.one("north"):
        with pytest.raises(HTTPException), at_once.one("north"):
            pass
        with at_once.one("south"):
            pass

    with at_once.one("north"):
        assert at_once._counts == {"north": 1}
    assert at_once._counts == {}


def test_body_waits_for_room_and_gets_it_when_another_is_gone():
    async def two() -> list[str]:
        room, order = Room(10, patience_s=60), []

        async def hold(name: str, size: int, gate: asyncio.Event) -> None:
            async with room.hold(size, site=name):
                order.append(name)
                await gate.wait()

        first, second = asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(hold("one", 8, first))
        await asyncio.sleep(0)
        # Longer than all there is: it waits until it is alone.
        two = asyncio.create_task(hold("two", 1000, second))
        for _ in range(5):
            await asyncio.sleep(0)
        before = list(order)
        first.set()
        second.set()
        await asyncio.gather(one, two)
        return [*before, "|", *order]

    assert asyncio.run(two()) == ["one", "|", "one", "two"]


def test_body_that_finds_no_room_in_time_is_told_to_come_again():
    async def crowded() -> None:
        room = Room(10, patience_s=0)
        async with room.hold(10, site="north"), room.hold(1, site="south"):
            pass

    with pytest.raises(HTTPException) as refused:
        asyncio.run(crowded())

    assert refused.value.status_code == 503


async def is_admitted(room: Room, n_bytes: int, *, site: str) -> bool:
    try:
        async with room.hold(n_bytes, site=site):
            return True
    except HTTPException:
        return False


def test_site_that_holds_its_quarter_leaves_the_rest_to_others():
    async def crowded() -> list[bool]:
        room = Room(64 << 20, patience_s=0)
        async with room.hold(10 << 20, site="north"):
            # A quarter is 16 MiB.
            return [
                await is_admitted(room, 7 << 20, site="north"),
                await is_admitted(room, 6 << 20, site="north"),
                await is_admitted(room, 48 << 20, site="south"),
            ]

    assert asyncio.run(crowded()) == [False, True, True]


def test_payload_longer_than_a_quarter_is_taken_while_its_site_holds_nothing_else():
    async def large() -> list[bool]:
        room = Room(64 << 20, patience_s=0)
        alone = await is_admitted(room, 40 << 20, site="north")
        async with room.hold(1, site="north"):
            return [alone, await is_admitted(room, 40 << 20, site="north")]

    assert asyncio.run(large()) == [True, False]


def test_polls_go_on_while_large_bodies_have_all_the_room_that_they_may():
    async def full() -> list[bool]:
        room = Room(64 << 20, patience_s=0)
        async with room.hold(1 << 40, site="north"):
            return [
                await is_admitted(room, 1 << 20, site="south"),
                await is_admitted(room, 64 << 10, site="south"),
            ]

    assert asyncio.run(full()) == [False, True]


def test_no_body_may_take_longer_than_the_longest_however_long_it_is():
    # 30 s and a second for each 16 KiB would be 10,270 s.
    assert Limits().body_seconds(160 << 20) == 1800
    assert Limits().body_seconds(160 << 10) == 40


def test_object_is_read_once_there_is_room_for_it_and_not_before():
    reads, sent = [], []

    async def read() -> tuple[bytes, str]:
        reads.append("read")
        return b"x" * 100, "0" * 64

    async def send(message) -> None:
        sent.append(message["type"])

    async def crowded() -> None:
        bodies = Bodies(Limits(body_bytes=200, body_wait_s=0))
        answer = ObjectAnswer(read, n_bytes=100, site="north", bodies=bodies)
        async with bodies.room.hold(150, site="south"):
            with pytest.raises(HTTPException):
                await answer({}, None, send)
        assert (reads, sent) == ([], [])
        await answer({}, None, send)

    asyncio.run(crowded())

    assert reads == ["read"]
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


def test_memory_limit_of_a_container_counts(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/fedloom.service\n")
    groups = tmp_path / "groups"
    inner = groups / "system.slice" / "fedloom.service"
    inner.mkdir(parents=True)

    assert memory_limits(groups, own) == []
    (inner / "memory.max").write_text("2147483648\n")
    (groups / "memory.max").write_text("max\n")
    assert memory_limits(groups, own) == [2147483648]
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    assert memory_limits(groups, own) == [1073741824, 2147483648]
