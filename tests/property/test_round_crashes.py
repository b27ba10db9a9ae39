"""The round protocol under crashes at every write, with two coordinators racing.

A crash is an exception raised before or after a write. A race is the other coordinator running to
its end at exactly that moment. Whatever happens, running again ends with one plan, one charge per
site, one released draw per charge and one adapter.
"""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore
from fl_core.rounds.adapters import read_state
from fl_core.rounds.charging import charge_round
from fl_core.rounds.collection import close_collection, examine_site, read_update
from fl_core.rounds.documents import Outcome
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import release_round, skip_round
from fl_core.rounds.site_round import client_round
from tests.worlds import AFTER_DEADLINE, NOW, World, campaign_of, open_site, world_of


class Crash(BaseException):
    """The process is gone; nothing below the test may catch it."""


class FragileStore:
    """Passes everything on; asks the script what happens around every write."""

    def __init__(self, inner: ObjectStore, around: Callable[[str], None]) -> None:
        self._inner, self._around = inner, around
        self.left: dict[str, set[bytes]] = {}
        self.order: list[str] = []

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self._inner.get(key, max_bytes=max_bytes)

    def list(self, prefix: str) -> list[str]:
        return self._inner.list(prefix)

    def put_once(self, key: str, data: bytes) -> bool:
        self._around("before")
        self.left.setdefault(key, set()).add(data)
        written = self._inner.put_once(key, data)
        if written:
            self.order.append(key)
        self._around("after")
        return written

    def discard(self, key: str) -> None:
        self._around("before")
        self._inner.discard(key)
        self._around("after")


def coordinate(world: World, store: ObjectStore) -> Outcome:
    plan = open_round(world.assembly, store, round_number=1, now=NOW)
    answers = {
        site: answer
        for site in plan.cohort
        if (answer := examine_site(world.assembly, store, plan, site=site)) is not None
    }
    collected = close_collection(world.assembly, store, plan, answers=answers, now=AFTER_DEADLINE)
    assert collected is not None
    if not collected.has_quorum:
        return skip_round(world.assembly, store, plan, reason="few", now=AFTER_DEADLINE)
    charge = charge_round(world.assembly, store, plan, collected=collected)
    return release_round(
        world.assembly, store, plan, collected=collected, charge=charge, now=AFTER_DEADLINE
    )


def take_part(world: World, site: str, store: ObjectStore, wrap) -> None:
    """One process of a site: opens everything afresh, as after a kill."""
    old = world.sites[site]
    fresh = open_site(
        site, old.key, old.policy, wrap(world.ledgers[site]), wrap(world.outboxes[site])
    )
    plan = open_round(world.assembly, store, round_number=1, now=NOW)
    client_round(fresh, world.works[site], assembly=world.assembly, store=store, plan=plan)


def until_done(step: Callable[[], object], tries: int = 60) -> None:
    for _ in range(tries):
        try:
            step()
        except Crash:
            continue
        return
    raise AssertionError("did not finish")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_crashes_and_races_keep_one_charge_one_draw_one_release(data):
    world = world_of(campaign_of(sites=("a", "b")))
    crashes_left = data.draw(st.integers(0, 12))
    racing = False

    def around(when: str) -> None:
        nonlocal crashes_left, racing
        if crashes_left and data.draw(st.integers(0, 3)) == 0:
            crashes_left -= 1
            raise Crash(when)
        if not racing and may_race and data.draw(st.integers(0, 5)) == 0:
            racing = True
            try:
                coordinate(world, world.store)
            finally:
                racing = False

    may_race = False
    store = FragileStore(world.store, around)
    for site in ("a", "b"):
        until_done(
            lambda site=site: take_part(world, site, store, lambda s: FragileStore(s, around))
        )
    may_race = True
    until_done(lambda: coordinate(world, store))

    again = coordinate(world, world.store)

    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    for site in ("a", "b"):
        reserves = [e for e in world.sites[site].ledger.entries() if e.kind == "reserve"]
        payload = keys.payload("tiny", 1, site)
        assert len(reserves) == 1
        assert world.works[site].trainings <= 2
        assert len(store.left.get(payload, set())) <= 1
    assert again.status in {"released", "skipped"}
    if again.status == "released":
        deltas = [
            read_update(world.assembly, world.store, plan, site=site).tensors
            for site in again.contributors
        ]
        before = read_state(world.store, world.assembly.campaign, plan.base_hash).tensors()
        after = read_state(world.store, world.assembly.campaign, again.result_hash).tensors()
        for name in before:
            mean = np.mean([delta[name] for delta in deltas], axis=0)
            np.testing.assert_allclose(after[name], before[name] + mean, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(first=st.sampled_from(["a", "b"]), crash_at=st.integers(0, 20))
def test_a_site_killed_at_any_write_sends_one_draw_after_its_retry(first, crash_at):
    world = world_of(campaign_of(sites=("a", "b")))
    writes = 0

    def around(when: str) -> None:
        nonlocal writes
        writes += 1
        if writes == crash_at:
            raise Crash(when)

    store = FragileStore(world.store, around)

    until_done(lambda: take_part(world, first, store, lambda s: FragileStore(s, around)))

    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    answer = examine_site(world.assembly, world.store, plan, site=first)
    assert answer is not None
    assert answer.status == "accepted"
    assert len(store.left[keys.payload("tiny", 1, first)]) == 1
