"""The coordinator's noise: what stops a release, and what running it again gives."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from fl_core.aggregation.aggregator import AGGREGATORS, Aggregate, Cohort
from fl_core.aggregation.mean import Mean
from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import is_buried
from fl_core.campaign.components import Part
from fl_core.errors import LedgerCorrupt, PolicyRefused
from fl_core.privacy.forecast import with_noise
from fl_core.rounds.charging import charge_round, read_federation_budget
from fl_core.rounds.release import release_round
from fl_core.rounds.status import campaign_status, next_round
from tests.round_steps import collect, finish, plan_of, release, take_part
from tests.worlds import AFTER_DEADLINE, World, campaign_of, coordinator_of, world_of

CLIENT = {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}


def central_world(**changes) -> World:
    return world_of(with_noise(campaign_of(privacy={"client": CLIENT}, **changes)))


def trained(world: World, number: int = 1) -> World:
    for site in plan_of(world, number).cohort:
        take_part(world, site, number)
    return world


class Forgetful(Part):
    """States a bound on the probe of the assembly and none, or another divisor, on real updates."""

    def aggregate(
        self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
    ) -> Aggregate:
        stated = Mean().aggregate(cohort, weights, divisor)
        if cohort.members[0].site.startswith("probe"):
            return stated
        return replace(stated, **self.lie)

    lie: dict


@pytest.fixture(params=[{"l2_sensitivity": None}, {"l2_sensitivity": 0.5}, {"divisor": 2.0}])
def lying_rule(request):
    AGGREGATORS.register("forgetful")(Forgetful)
    yield {"kind": "forgetful", "lie": request.param}
    AGGREGATORS._parts.pop("forgetful")


def test_rule_that_states_another_bound_than_it_was_allowed_for_ends_the_round(lying_rule):
    world = trained(central_world(aggregation=lying_rule))

    outcome = finish(world)

    assert outcome.status == "failed"
    assert "the noise covers 0.333333 over 3; nothing is released" in outcome.reason
    assert keys.release("tiny", 1) not in world.store.list("campaigns/")
    assert all(is_buried(world.store, keys.payload("tiny", 1, site)) for site in "abc")
    assert [e.kind for e in world.coordinator.federation.ledger.entries()] == ["genesis", "reserve"]


def test_running_a_release_again_charges_and_draws_nothing_more():
    world = trained(central_world())
    first = finish(world)
    before = {key: world.store.get(key) for key in world.store.list("")}

    again = release(world, collect(world))

    assert again == first
    assert {key: world.store.get(key) for key in world.store.list("")} == before


def test_release_without_its_charge_on_the_ledger_is_refused():
    world = trained(central_world())
    collected, plan = collect(world), plan_of(world)
    charge = charge_round(
        world.assembly,
        world.store,
        plan,
        collected=collected,
        coordinator=coordinator_of(MemoryStore()),
    )

    with pytest.raises(LedgerCorrupt, match="not on the federation's ledger"):
        release_round(
            world.assembly,
            world.store,
            plan,
            collected=collected,
            charge=charge,
            now=AFTER_DEADLINE,
            coordinator=world.coordinator,
        )

    assert keys.release("tiny", 1) not in world.store.list("campaigns/")


def test_update_that_was_removed_after_it_was_accepted_ends_the_round():
    world = trained(central_world())
    collected = collect(world)
    world.store.discard(keys.payload("tiny", 1, "b"))

    outcome = release(world, collected)

    assert outcome.status == "failed"
    assert "site 'b'" in outcome.reason
    assert keys.release("tiny", 1) not in world.store.list("campaigns/")


def test_campaign_whose_delta_is_above_the_federations_is_refused():
    world = trained(central_world())
    federation = world.coordinator.federation
    strict = replace(federation, policy=federation.policy.model_copy(update={"delta": 1e-6}))
    world.coordinator = replace(world.coordinator, federation=strict)

    with pytest.raises(PolicyRefused, match=r"federation's delta is 1e-06 .* states 0\.001"):
        finish(world)


def test_two_campaigns_of_one_store_share_the_federations_budget():
    world = trained(central_world())
    finish(world)
    other = trained(central_world(id="other"))
    # The second campaign's coordinator charges the ledger of the first one's store.
    other.coordinator = world.coordinator
    one = read_federation_budget(world.assembly, world.store, 1)

    charge_round(
        other.assembly,
        world.store,
        plan_of(other),
        collected=collect(other),
        coordinator=other.coordinator,
    )

    ledger = world.coordinator.federation.ledger
    both = read_federation_budget(other.assembly, world.store, 1)
    assert len(ledger.events()) == 2
    assert both.epsilon > one.epsilon
    assert (both.ledger_seq, one.ledger_seq) == (4, 2)


def test_status_shows_what_whole_sites_have_spent():
    world = trained(central_world(max_rounds=2))
    finish(world)
    trained(world, 2)
    finish(world, 2)

    status = campaign_status(world.assembly, world.store)

    first, second = (item.federation for item in status.rounds)
    assert 0 < first.epsilon < second.epsilon <= 8.0
    assert (first.site, first.unit, first.accountant) == ("federation", "site", "gdp")
    assert status.end == "finished"
    assert all(item.budgets == {} for item in status.rounds)


def test_statement_of_the_federation_under_a_forged_key_counts_as_not_stated():
    world = trained(central_world())
    finish(world)
    key = keys.federation_budget("tiny", 1)
    other = trained(central_world())
    finish(other)

    world.store.discard(key)
    world.store.put_once(key, other.store.get(key))

    assert read_federation_budget(world.assembly, world.store, 1) is None


def test_campaign_ends_before_a_round_that_the_federation_cannot_pay():
    world = trained(central_world())
    finish(world)
    federation = world.coordinator.federation
    spent = read_federation_budget(world.assembly, world.store, 1).epsilon
    poor = replace(federation, policy=federation.policy.model_copy(update={"epsilon": spent}))

    assert next_round(world.assembly, world.store, federation=federation) == 2
    assert next_round(world.assembly, world.store, federation=poor) == "budget spent"


def test_site_that_has_seen_a_charge_trains_no_more_once_the_ledger_was_set_back():
    world = trained(central_world())
    finish(world)
    trained(world, 2)
    for seq in (2, 3):
        world.store.discard(keys.FEDERATION + keys.ledger_entry(seq))

    with pytest.raises(LedgerCorrupt, match=r"entry 3 of the federation's ledger.* is gone"):
        take_part(world, "a", 3)

    assert world.works["a"].trainings == 2
    assert world.sites["a"].ledger.chain().reserve_of(world.assembly.digest, 3) is None


def test_site_without_copies_of_the_federations_ledger_declines():
    world = central_world()
    world.sites["a"] = replace(world.sites["a"], federation_copies=None)

    outcome = take_part(world, "a")

    assert (outcome.status, outcome.reason) == ("declined", "policy")
    assert world.works["a"].trainings == 0
