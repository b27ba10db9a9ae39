"""What one party may use of the gateway: buckets, requests at one time, room in memory."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from flows.gateway.limits import AtOnce, Buckets, Rate, Room


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
            async with room.hold(size):
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
        async with room.hold(10), room.hold(1):
            pass

    with pytest.raises(HTTPException) as refused:
        asyncio.run(crowded())

    assert refused.value.status_code == 503
