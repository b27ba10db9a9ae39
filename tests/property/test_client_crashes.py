"""Rounds that protect whole sites, under crashes at every write and racing coordinators.

Central noise: one charge on the federation's ledger, before the one draw that is stored, and no raw
update once the round is closed. Local noise: one charge on each of a site's two ledgers, and one
draw that leaves. A coordinator that races runs to its end at exactly the moment of a write.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.artifacts.store import TOMBSTONE, is_buried
from fl_core.privacy.forecast import with_noise
from fl_core.rounds.adapters import read_state
from fl_core.rounds.documents import Outcome
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import skip_round
from fl_core.rounds.released_delta import read_release
from tests.fragile_worlds import Crash, FragileStore, Script, coordinate, take_part, until_done
from tests.worlds import AFTER_DEADLINE, NOW, World, campaign_of, world_of

CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}
LOCAL = CLIENT | {"mechanism": "local_gaussian"}


def client_world(client: dict) -> World:
    campaign = campaign_of(sites=("a", "b"), privacy={"client": client})
    return world_of(with_noise(campaign), epsilon=1000.0)


@pytest.mark.parametrize("client", [CLIENT, LOCAL], ids=["central", "local"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_crashes_and_races_keep_one_charge_one_draw_and_no_raw_update(client, data):
    world = client_world(client)
    around = Script(data)
    store = FragileStore(world.store, around)
    for site in ("a", "b"):
        until_done(
            lambda site=site: take_part(world, site, store, lambda s: FragileStore(s, around))
        )
    around.race = lambda: coordinate(world, store)
    until_done(lambda: coordinate(world, store))

    again = coordinate(world, world.store)

    assert again.status in {"released", "skipped"}
    require_one_of_each_at_sites(world, store)
    if client is CLIENT:
        require_one_central_release(world, store, again)
    if again.status == "released":
        before = read_state(world.store, world.assembly.campaign, again.base_hash).tensors()
        after = read_state(world.store, world.assembly.campaign, again.result_hash).tensors()
        released = read_release(world.store, "tiny", 1)
        for name in before:
            np.testing.assert_array_equal(after[name], before[name] + released[name])


def require_one_of_each_at_sites(world: World, store: FragileStore) -> None:
    for site in ("a", "b"):
        opened = world.sites[site]
        for ledger in filter(None, (opened.ledger, opened.client_ledger)):
            assert [entry.kind for entry in ledger.entries()].count("reserve") == 1
        assert world.works[site].trainings <= 2
        sent = store.left.get(keys.payload("tiny", 1, site), set())
        assert len(sent - {TOMBSTONE}) <= 1


def require_one_central_release(world: World, store: FragileStore, outcome: Outcome) -> None:
    for site in ("a", "b"):
        assert is_buried(world.store, keys.payload("tiny", 1, site))
    kinds = [entry.kind for entry in world.coordinator.federation.ledger.entries()]
    if outcome.status == "skipped":
        assert kinds == ["genesis"]
        assert keys.release("tiny", 1) not in store.order
        return
    assert kinds == ["genesis", "reserve", "commit"]
    reserve = keys.FEDERATION + keys.ledger_entry(2)
    closing = [keys.release("tiny", 1), keys.outcome("tiny", 1)]
    assert store.order.index(reserve) < store.order.index(closing[0])
    assert store.order.index(closing[0]) < store.order.index(closing[1])


@settings(max_examples=60, deadline=None)
@given(crash_at=st.integers(1, 40))
def test_coordinator_killed_at_any_write_has_no_raw_update_left_once_the_round_is_closed(crash_at):
    world = client_world(CLIENT)
    for site in ("a", "b"):
        take_part(world, site, world.store, lambda s: s)
    raw = {site: world.store.get(keys.payload("tiny", 1, site)) for site in ("a", "b")}
    events = 0

    def around(when: str) -> None:
        nonlocal events
        events += 1
        if keys.outcome("tiny", 1) in world.store.list("campaigns/tiny/rounds/0001/outcome"):
            kept = {world.store.get(key) for key in world.store.list("campaigns/")}
            assert kept.isdisjoint(raw.values())
        if events == crash_at:
            raise Crash(when)

    store = FragileStore(world.store, around)
    until_done(lambda: coordinate(world, store))

    kept = {world.store.get(key) for key in world.store.list("campaigns/")}
    assert kept.isdisjoint(raw.values())


def test_site_that_uploads_after_the_round_was_closed_leaves_nothing_raw():
    world = client_world(CLIENT)
    take_part(world, "a", world.store, lambda s: s)
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    assert skip_round(world.assembly, world.store, plan, reason="few", now=AFTER_DEADLINE)

    take_part(world, "b", world.store, lambda s: s)

    for site in ("a", "b"):
        assert is_buried(world.store, keys.payload("tiny", 1, site))
