"""How long a worker pauses while its API is away, and that it never gives up."""

import asyncio

import anyio
import httpx
import pytest

from flows import patience


@pytest.fixture
def pauses(monkeypatch):
    """Record the pauses that are asked for, and take none."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(anyio, "sleep", note)
    return found


def away(times):
    """Return a step that finds nobody so many times, then answers."""
    left = iter(range(times))

    async def step() -> str:
        if next(left, None) is not None:
            raise httpx.ConnectError("refused")
        return "answered"

    return step


def test_pauses_double_up_to_a_quarter_of_a_minute(pauses):
    found = asyncio.run(patience.until_done(away(8)))

    assert found == "answered"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0]


def test_heartbeat_is_tried_again_within_half_of_its_interval(pauses):
    asyncio.run(patience.until_done(away(8), longest_wait_s=5.0))

    # So the coordinator hears of a worker within 10 s, when the API is back.
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]
