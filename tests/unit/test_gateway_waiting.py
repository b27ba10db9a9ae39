"""One watcher for all who wait: each key is asked for once, and answers come at once."""

import asyncio
import threading
from collections import Counter

from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import StoreUnavailable
from flows.gateway.waiting import TICK_S, Watcher


class AskedStore(MemoryStore):
    """A store that counts how often each key is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = Counter()
        self.failures = 0

    def size(self, key):
        self.asked[key] += 1
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        return super().size(key)


def watched(store, *waiting):
    """Let these wait together; return what each of them is answered."""

    async def run():
        watcher = Watcher(store)
        watching = asyncio.create_task(watcher.run())
        try:
            return await asyncio.gather(
                *(watcher.wait(keys, seconds=seconds) for keys, seconds in waiting)
            )
        finally:
            watching.cancel()

    return asyncio.run(run())


def test_key_that_is_there_is_answered_without_waiting():
    store = AskedStore()
    store.put_once("plan", b"x")

    assert watched(store, (["plan", "stop"], 60)) == [["plan"]]


def test_all_keys_that_are_there_are_named_in_the_order_of_the_question():
    store = AskedStore()
    store.put_once("plan", b"x")
    store.put_once("stop", b"x")

    assert watched(store, (["stop", "plan"], 60)) == [["stop", "plan"]]


def test_fifty_sites_that_wait_for_one_plan_cost_one_question_a_tick():
    store = AskedStore()

    found = watched(store, *[(["plan"], 10 * TICK_S)] * 50)

    assert found == [[]] * 50
    # Ten ticks at most, and the one that the first of them began.
    assert 1 <= store.asked["plan"] <= 12


def test_key_of_which_another_one_begins_like_it_is_not_there():
    store = AskedStore()
    store.put_once("plan.json.other", b"x")

    assert watched(store, (["plan.json"], 2 * TICK_S)) == [[]]


def test_store_that_is_away_for_a_moment_does_not_end_the_waiting():
    store = AskedStore()
    store.put_once("plan", b"x")
    store.failures = 2

    assert watched(store, (["plan"], 60)) == [["plan"]]


def test_key_that_nobody_writes_is_looked_for_less_and_less_often():
    now = [0.0]
    watcher = Watcher(MemoryStore(), clock=lambda: now[0])
    watcher._since["plan"] = (0.0, 0.0)

    pauses = [watcher._interval("plan", at) for at in (0, 30, 360, 10_000)]

    # .05 s for a minute, then .0005 s longer each second, up to half a second.
    assert pauses == [0.05, 0.05, 0.2, 0.5]


class HangingStore(MemoryStore):
    """A store whose answers do not come back before they are let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def size(self, key):
        self.let_go.wait()
        return super().size(key)


def test_absent_keys_take_no_thread_from_other_requests():
    store = HangingStore()

    async def run():
        watcher = Watcher(store)
        watching = asyncio.create_task(watcher.run())
        waits = [asyncio.create_task(watcher.wait([f"key-{n}"], seconds=30)) for n in range(64)]
        await asyncio.sleep(2 * TICK_S)
        try:
            # Without threads of the watcher's own, these would wait for the store for ever.
            async with asyncio.timeout(20):
                return await asyncio.gather(*(asyncio.to_thread(str, n) for n in range(8)))
        finally:
            store.let_go.set()
            for task in (watching, *waits):
                task.cancel()

    assert asyncio.run(run()) == [str(n) for n in range(8)]
