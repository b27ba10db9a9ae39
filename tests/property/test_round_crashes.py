"""The round protocol under crashes at every write, with two coordinators racing.

A crash is an exception raised before or after a write. A race is the other coordinator running to
its end at exactly that moment. Whatever happens, running again ends with one plan, one charge per
site, one released draw per charge and one adapter.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.rounds.adapters import read_state
from fl_core.rounds.collection import RoundAnswers, examine_site
from fl_core.rounds.plan import open_round
from tests.fragile_worlds import Crash, FragileStore, Script, coordinate, take_part, until_done
from tests.worlds import NOW, campaign_of, world_of


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_crashes_and_races_keep_one_charge_one_draw_one_release(data):
    world = world_of(campaign_of(sites=("a", "b")))
    around = Script(data)
    store = FragileStore(world.store, around)
    for site in ("a", "b"):
        until_done(
            lambda site=site: take_part(world, site, store, lambda s: FragileStore(s, around))
        )
    around.race = lambda: coordinate(world, world.store)
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
            RoundAnswers(world.assembly, world.store, plan).update(site).tensors
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
