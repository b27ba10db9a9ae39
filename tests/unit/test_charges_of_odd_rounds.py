"""Who has paid what when rounds do not go as planned: declined, dropped, late, everybody drawn."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.budget import spend
from fl_core.privacy.events import dpsgd_event, merged
from fl_core.privacy.gaussian_curve import gaussian_epsilon
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import skip_round
from fl_core.rounds.site_round import client_round
from fl_core.rounds.site_witness import void_idle_reserves
from fl_core.updates.records import GateReport
from tests.worlds import NOW, SUITE, campaign_of, world_of

DELTA = 1e-5


def take_part(world, site, number):
    plan = open_round(world.assembly, world.store, round_number=number, now=NOW)
    return client_round(
        world.sites[site],
        world.works[site],
        assembly=world.assembly,
        store=world.store,
        plan=plan,
    )


def spent(world, site):
    own = world.sites[site]
    return spend(own.policy, own.ledger.events()).epsilon


def rounds_of(count, **changes):
    numbers = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "steps": 8} | changes
    return [dpsgd_event(**numbers)] * count


def test_site_that_declines_has_paid_nothing():
    world = world_of(campaign_of())
    world.works["a"].report = GateReport(suite_sha256=SUITE, passed=False, failed=("rows",))

    outcome = take_part(world, "a", 1)

    assert outcome.status == "declined"
    assert spent(world, "a") == 0.0


def test_site_that_fails_after_training_began_has_paid_the_whole_round():
    world = world_of(campaign_of())
    world.works["a"].fails_with = RuntimeError("a disk is full")

    outcome = take_part(world, "a", 1)

    assert outcome.reason == "no_update"
    assert spent(world, "a") == pytest.approx(epsilon(rounds_of(1), delta=DELTA))


# The vector fed-3sites: a site spends for the rounds it ran, also where the update was then lost.
def test_update_that_is_lost_on_its_way_is_paid_like_the_others():
    world = world_of(campaign_of())
    take_part(world, "a", 1)
    take_part(world, "b", 1)
    lost = [key for key in world.store.list("campaigns/") if "/updates/a/" in key]

    for key in lost:
        world.store.discard(key)
    take_part(world, "a", 2)

    assert lost
    assert spent(world, "a") == pytest.approx(epsilon(rounds_of(2), delta=DELTA))
    assert spent(world, "b") == pytest.approx(epsilon(rounds_of(1), delta=DELTA))


def test_rounds_that_a_site_was_not_part_of_cost_it_nothing():
    world = world_of(campaign_of())

    for number in (1, 2, 3):
        take_part(world, "a", number)
    take_part(world, "b", 3)

    assert spent(world, "b") == pytest.approx(epsilon(rounds_of(1), delta=DELTA))
    assert spent(world, "c") == 0.0


# With a rate of 1 there is no amplification: 8 steps at z 8 are one release of z 8 / sqrt 8, which
# the notes' closed form answers exactly.
def test_everybody_in_every_batch_is_charged_as_plain_gaussian_steps():
    record = campaign_of().privacy.record.model_dump() | {
        "sampling_rate": 1.0,
        "noise_multiplier": 8.0,
    }
    world = world_of(campaign_of(privacy={"record": record}))

    take_part(world, "a", 1)

    ((base, count),) = merged(world.sites["a"].ledger.events())
    assert (base.kind, count) == ("gaussian", 8)
    assert spent(world, "a") == pytest.approx(
        gaussian_epsilon(sigma=8 / 8**0.5, sensitivity=1.0, delta=DELTA), rel=1e-3
    )


def test_the_charge_of_a_round_does_not_depend_on_who_else_answered():
    alone, crowd = world_of(campaign_of(("a",))), world_of(campaign_of())

    take_part(alone, "a", 1)
    for site in ("b", "c", "a"):
        take_part(crowd, site, 1)

    assert alone.sites["a"].ledger.events() == crowd.sites["a"].ledger.events()


class Moving:
    """A site's clock that others move."""

    def __init__(self):
        self.time = NOW

    def now(self):
        return self.time

    def wait_until(self, moment):
        self.time = max(self.time, moment)


class Slow(MemoryStore):
    """A witness whose listing, or whose writing of one entry, lasts beyond every deadline."""

    def __init__(self, clock, slow_at):
        super().__init__()
        self._clock, self._slow_at = clock, slow_at

    def list(self, prefix):
        self._spend("listing")
        return super().list(prefix)

    def put_once(self, key, data):
        self._spend(key.rpartition("/")[2])
        return super().put_once(key, data)

    def _spend(self, what):
        if what == self._slow_at:
            self._clock.time += timedelta(days=7)


def round_at(slow_at=""):
    """Return a world, its first round, and a function with which site a takes part in it."""
    world, clock = world_of(campaign_of()), Moving()
    witnesses = (
        WitnessedStore("slow", Slow(clock, slow_at), is_own=True),
        WitnessedStore("other", MemoryStore(), is_own=True),
    )
    site = replace(world.sites["a"], clock=clock, witnesses=witnesses)
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)

    def answer():
        return client_round(
            site, world.works["a"], assembly=world.assembly, store=world.store, plan=plan
        )

    return world, clock, answer


# Entry 2 is the round's reserve: where its way to the witness takes too long, it stands already.
@pytest.mark.parametrize(("slow_at", "kinds"), [
    ("listing", ["genesis"]),
    ("000002.json", ["genesis", "reserve"]),
])  # fmt: skip
def test_round_whose_deadline_passes_at_a_witness_is_not_trained(slow_at, kinds):
    world, _, answer = round_at(slow_at)

    outcome = answer()

    assert (outcome.status, outcome.reason) == ("declined", "no_update")
    assert "deadline passed" in outcome.detail
    assert world.works["a"].trainings == 0
    assert [entry.kind for entry in world.sites["a"].ledger.entries()] == kinds


def test_charge_of_a_round_whose_deadline_passed_before_training_is_taken_back():
    world, clock, answer = round_at("000002.json")
    answer()
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    skip_round(world.assembly, world.store, plan, reason="too few updates", now=clock.time)

    void_idle_reserves(world.sites["a"], world.assembly, world.store)

    assert spent(world, "a") == 0.0


def test_round_that_was_begun_before_its_deadline_goes_on_after_it():
    world, clock, answer = round_at()
    world.works["a"].fails_with = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        answer()
    world.works["a"].fails_with = None
    clock.time += timedelta(days=7)

    answer()

    assert world.works["a"].trainings == 2
    assert world.store.list(keys.update_prefix("tiny", 1, "a"))
