"""Waiting for objects: one task asks the store for all who wait.

Sites wait for plans, often all of them for the same one, so each distinct key is asked for once
per tick whoever waits. A key that was asked for a moment ago is looked for twenty times a second;
one that nobody has written for minutes is looked for less and less often, down to twice a second.
It has threads of its own, so that many absent keys hold up no request for an object.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fl_core.artifacts.store import ObjectStore, exists
from fl_core.errors import StoreError

TICK_S = 0.05
_SLOWEST_S = 0.5
_EAGER_S = 60.0
# How much a second of waiting lengthens the pause; from .05 to .5 s takes 15 minutes.
_GROWTH = 0.0005
_FORGOTTEN_S = 120.0
_THREADS = 4

log = logging.getLogger(__name__)


class _Waiter:
    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.next_at = 0.0
        self.found: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()


class Watcher:
    """Looks for the keys that somebody waits for.

    Args:
        store: The campaigns' store.
        clock: Seconds that only go up.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._waiters: set[_Waiter] = set()
        self._since: dict[str, tuple[float, float]] = {}
        self._news = asyncio.Event()

    async def wait(self, keys: Sequence[str], *, seconds: float) -> list[str]:
        """Return those of ``keys`` that exist as soon as one does, or [] after ``seconds``."""
        waiter = _Waiter(tuple(dict.fromkeys(keys)))
        now = self._clock()
        for key in waiter.keys:
            self._since[key] = (self._since.get(key, (now, now))[0], now + seconds)
        self._waiters.add(waiter)
        self._news.set()
        try:
            async with asyncio.timeout(seconds):
                return await waiter.found
        except TimeoutError:
            return []
        finally:
            self._waiters.discard(waiter)

    async def run(self) -> None:
        """Look for keys, for ever."""
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="watcher")
        try:
            while True:
                if not self._waiters:
                    self._news.clear()
                    await self._news.wait()
                await self._tick(threads)
                await self._pause()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _tick(self, threads: ThreadPoolExecutor) -> None:
        now = self._clock()
        due = [waiter for waiter in self._waiters if waiter.next_at <= now]
        wanted = sorted({key for waiter in due for key in waiter.keys})
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(loop.run_in_executor(threads, self._exists, key) for key in wanted)
        )
        present = {key for key, answer in zip(wanted, answers, strict=True) if answer}
        for waiter in due:
            found = [key for key in waiter.keys if key in present]
            if found and not waiter.found.done():
                waiter.found.set_result(found)
                self._waiters.discard(waiter)
            waiter.next_at = now + min(self._interval(key, now) for key in waiter.keys)
        self._since = {k: v for k, v in self._since.items() if v[1] > now - _FORGOTTEN_S}

    async def _pause(self) -> None:
        """Sleep until the next waiter is due, or somebody new waits."""
        if not self._waiters:
            return
        self._news.clear()
        next_at = min(waiter.next_at for waiter in self._waiters)
        try:
            async with asyncio.timeout(max(TICK_S, next_at - self._clock())):
                await self._news.wait()
        except TimeoutError:
            return
        # Those who come together are asked for together.
        await asyncio.sleep(TICK_S / 10)

    def _interval(self, key: str, now: float) -> float:
        began, _ = self._since.get(key, (now, now))
        waited_s = max(0.0, now - began - _EAGER_S)
        return min(_SLOWEST_S, TICK_S + _GROWTH * waited_s)

    def _exists(self, key: str) -> bool:
        try:
            return exists(self._store, key)
        except StoreError as error:
            # Whoever waits then asks again; a store that comes back is found at a later tick.
            log.warning("store cannot be asked key=%s error=%s", key, error)
            return False
