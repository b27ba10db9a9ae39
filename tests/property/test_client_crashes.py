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
from fl_core.artifacts.store import TOMBSTONE, ObjectStore, is_buried
from fl_core.privacy.federation import FederationLimits, open_federation
from fl_core.privacy.forecast import with_noise
from fl_core.rounds.adapters import read_state
from fl_core.rounds.central_release import NO_FEDERATION, Coordinator
from fl_core.rounds.charging import charge_round
from fl_core.rounds.collection import close_collection, examine_site
from fl_core.rounds.documents import Outcome
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import release_round, skip_round
from fl_core.rounds.released_delta import read_release
from fl_core.rounds.site_round import client_round
from tests.property.test_round_crashes import Crash, FragileStore, until_done
from tests.worlds import AFTER_DEADLINE, NOW, World, campaign_of, open_site, world_of

CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}
LOCAL = CLIENT | {"mechanism": "local_gaussian"}


def client_world(client: dict) -> World:
    campaign = campaign_of(sites=("a", "b"), privacy={"client": client})
    return world_of(with_noise(campaign), epsilon=1000.0)


def coordinator_over(world: World, store: ObjectStore) -> Coordinator:
    """A coordinator process that has just started."""
    known = world.coordinator.federation
    if known is None:
        return NO_FEDERATION
    limits = FederationLimits(epsilon=known.policy.epsilon, delta=known.policy.delta)
    return Coordinator(open_federation(store, limits=limits, key=known.key))


def coordinate(world: World, store: ObjectStore) -> Outcome:
    assembly, own = world.assembly, coordinator_over(world, store)
    plan = open_round(assembly, store, round_number=1, now=NOW)
    answers = {
        site: answer
        for site in plan.cohort
        if (answer := examine_site(assembly, store, plan, site=site)) is not None
    }
    collected = close_collection(assembly, store, plan, answers=answers, now=AFTER_DEADLINE)
    assert collected is not None
    if not collected.has_quorum:
        return skip_round(assembly, store, plan, reason="few", now=AFTER_DEADLINE)
    charge = charge_round(assembly, store, plan, collected=collected, coordinator=own)
    return release_round(
        assembly,
        store,
        plan,
        collected=collected,
        charge=charge,
        now=AFTER_DEADLINE,
        coordinator=own,
    )


def take_part(world: World, site: str, store: ObjectStore, wrap) -> None:
    old = world.sites[site]
    whole = world.client_ledgers.get(site)
    fresh = open_site(
        site,
        old.key,
        old.policy,
        wrap(world.ledgers[site]),
        wrap(world.outboxes[site]),
        witnesses=old.witnesses,
        client_ledger_store=None if whole is None else wrap(whole),
        copies=old.federation_copies,
    )
    plan = open_round(world.assembly, store, round_number=1, now=NOW)
    client_round(fresh, world.works[site], assembly=world.assembly, store=store, plan=plan)


@pytest.mark.parametrize("client", [CLIENT, LOCAL], ids=["central", "local"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_crashes_and_races_keep_one_charge_one_draw_and_no_raw_update(client, data):
    world = client_world(client)
    crashes_left = data.draw(st.integers(0, 12))
    racing, may_race = False, False

    def around(when: str) -> None:
        nonlocal crashes_left, racing
        if crashes_left and data.draw(st.integers(0, 3)) == 0:
            crashes_left -= 1
            raise Crash(when)
        if not racing and may_race and data.draw(st.integers(0, 5)) == 0:
            racing = True
            try:
                coordinate(world, store)
            finally:
                racing = False

    store = FragileStore(world.store, around)
    for site in ("a", "b"):
        until_done(
            lambda site=site: take_part(world, site, store, lambda s: FragileStore(s, around))
        )
    may_race = True
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
