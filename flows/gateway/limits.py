"""How much of the gateway one party may use, and the buckets that hold it to that.

All sites share one process, so whatever one of them can make large is bounded here: requests,
requests at one time, bytes in memory, seconds. The figures leave a site's honest work far inside:
a worker asks some ten times in a round and every few seconds between rounds.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from starlette.exceptions import HTTPException

MAX_DOCUMENT_BYTES = 4 << 20
"""Longest signed document of a site; the same limit as at collection."""

MAX_API_BYTES = 1 << 20
"""Longest request for Prefect."""

_MAX_NAMES = 4096
_SMALL_BYTES = 64 << 10
_SHARE = 4
_KEPT_PART = 16


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen.

    Attributes:
        burst: How many at once, after a pause.
        per_s: How many a second in the long run.
    """

    burst: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway grants.

    Attributes:
        requests: Of one site.
        strangers: Requests of one address that is no site.
        copies: Copies of its ledger that a site writes for witnesses.
        copy_bytes: Bytes of those copies.
        states: States that a site sets to its runs.
        events: Events that a site sends of its runs.
        hellos: Different hellos of a site.
        listings: Listings of all campaigns by a site.
        listed: Keys that listings of a site name, whoever they are for.
        waits: Requests of one site that wait for objects at one time.
        at_once: Requests of one site that are under way at one time, waiting ones included.
        body_bytes: Bytes of all bodies in memory at one time.
        body_wait_s: How long an upload waits for room in memory.
        body_s: Seconds that a body of no length may take.
        body_bytes_per_s: Slowest upload and download that is waited for.
        longest_s: Seconds that no body may exceed, however long it is.
        drained_bytes: Longest body that is read and dropped so that a refusal arrives.
    """

    requests: Rate = Rate(burst=600, per_s=100)
    strangers: Rate = Rate(burst=60, per_s=5)
    copies: Rate = Rate(burst=2000, per_s=2)
    copy_bytes: Rate = Rate(burst=64 << 20, per_s=512)
    states: Rate = Rate(burst=200, per_s=2)
    events: Rate = Rate(burst=4000, per_s=20)
    hellos: Rate = Rate(burst=20, per_s=20 / 86400)
    listings: Rate = Rate(burst=20, per_s=0.1)
    listed: Rate = Rate(burst=100_000, per_s=1000)
    waits: int = 4
    at_once: int = 24
    body_bytes: int = 1 << 30
    body_wait_s: float = 60
    body_s: float = 30
    body_bytes_per_s: float = 16 << 10
    longest_s: float = 1800
    drained_bytes: int = 8 << 20

    def body_seconds(self, n_bytes: int) -> float:
        """Return how long a body of ``n_bytes`` may take on its way."""
        return min(self.body_s + n_bytes / self.body_bytes_per_s, self.longest_s)


def too_many(what: str, *, after_s: float) -> HTTPException:
    """Return the refusal of a party that asks too often."""
    seconds = max(1, math.ceil(after_s))
    return HTTPException(429, f"{what}; try again later", {"Retry-After": str(seconds)})


class Buckets:
    """A token bucket for each name.

    Args:
        rate: What each of them holds.
        clock: Seconds that only go up.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """Take one from a bucket; return 0, or the seconds until there is one to take."""
        now = self._clock()
        level, then = self._levels.get(name, (float(self._rate.burst), now))
        level = min(self._rate.burst, level + (now - then) * self._rate.per_s)
        if level < 1:
            self._levels[name] = (level, now)
            return (1 - level) / self._rate.per_s
        self._forget_full(now)
        self._levels[name] = (level - 1, now)
        return 0.0

    def require(self, name: str, what: str) -> None:
        """Take one from a bucket.

        Raises:
            HTTPException: 429, it is empty.
        """
        wait_s = self.take(name)
        if wait_s > 0:
            raise too_many(f"too many {what}", after_s=wait_s)

    def spend(self, name: str, n: int) -> None:
        """Take ``n`` for what was done already; a debt is paid off before the next is let in."""
        now = self._clock()
        level, then = self._levels.get(name, (float(self._rate.burst), now))
        level = min(self._rate.burst, level + (now - then) * self._rate.per_s)
        self._levels[name] = (level - n, now)

    def _forget_full(self, now: float) -> None:
        # Addresses are a stranger's choice, so they may not pile up.
        if len(self._levels) >= _MAX_NAMES:
            fills_s = self._rate.burst / self._rate.per_s
            kept = {n: v for n, v in self._levels.items() if now - v[1] < fills_s}
            self._levels = kept if len(kept) < _MAX_NAMES else {}


class AtOnce:
    """How many requests of each name are under way, with a bound."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._counts: dict[str, int] = {}

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Count one request while it is under way.

        Raises:
            HTTPException: 429, there are too many of this name.
        """
        count = self._counts.get(name, 0)
        if count >= self._bound:
            raise too_many(f"{count} requests are under way, at most {self._bound}", after_s=1)
        self._counts[name] = count + 1
        try:
            yield
        finally:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]


class Room:
    """Bytes of memory that bodies may take together, and of that what one site may.

    A site has a quarter of it, and one body that is longer only while it holds no other. A part is
    kept for small bodies, so that polls and documents of all sites go on while payloads wait.

    Args:
        size: Bytes in all; a body that is longer waits until it is alone.
        patience_s: How long a body waits for its room.
    """

    def __init__(self, size: int, *, patience_s: float) -> None:
        self._size = size
        self._patience_s = patience_s
        self._free = size
        self._held: dict[str, int] = {}
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, n_bytes: int, *, site: str) -> AsyncIterator[None]:
        """Hold room for a body of ``n_bytes``.

        Raises:
            HTTPException: 503, there was no room in time.
        """
        kept = 0 if n_bytes <= _SMALL_BYTES else self._size // _KEPT_PART
        taken = min(n_bytes, self._size - kept)
        try:
            async with asyncio.timeout(self._patience_s), self._changed:
                await self._changed.wait_for(
                    lambda: self._free - kept >= taken and self._is_in_share(site, taken)
                )
                self._free -= taken
                self._held[site] = self._held.get(site, 0) + taken
        except TimeoutError:
            raise HTTPException(
                503, "too many large bodies at one time; try again", {"Retry-After": "5"}
            ) from None
        try:
            yield
        finally:
            async with self._changed:
                self._free += taken
                self._held[site] -= taken
                if not self._held[site]:
                    del self._held[site]
                self._changed.notify_all()

    def _is_in_share(self, site: str, taken: int) -> bool:
        held = self._held.get(site, 0)
        return not held or held + taken <= self._size // _SHARE
