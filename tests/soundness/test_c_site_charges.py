"""SOUNDNESS, section C, at the level of a round: who charges, on which plan, how often."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.errors import LedgerCorrupt, StoreUnavailable
from fl_core.privacy.mechanism import NoisePlan
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_round import client_round
from fl_core.updates.manifest import Declined, UpdateManifest
from tests.worlds import NOW, FakeWork, campaign_of, open_site, policy_of, world_of


def plan_of(world, number=1):
    return open_round(world.assembly, world.store, round_number=number, now=NOW)


def take_part(world, site, plan):
    return client_round(
        site, world.works[site.name], assembly=world.assembly, store=world.store, plan=plan
    )


def test_rule_08_the_site_charges_the_whole_rounds_event_on_its_own_ledger():
    world = world_of(campaign_of())
    site = world.sites["a"]

    take_part(world, site, plan_of(world))

    (reserve,) = [e for e in site.ledger.entries() if e.kind == "reserve"]
    manifest = read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
    assert reserve.event == world.assembly.noise.event
    assert reserve.event.count == world.assembly.campaign.training.local_steps
    assert manifest.charge.ledger_seq == reserve.seq


def test_rule_09_a_second_plan_for_a_round_is_refused_and_trains_nothing():
    world = world_of(campaign_of())
    site = world.sites["a"]
    first = plan_of(world)
    take_part(world, site, first)
    second = first.model_copy(update={"roster_version": 1})
    other_store = world.store
    trainings = world.works["a"].trainings

    site_again = open_site("a", site.key, site.policy, world.ledgers["a"], type(other_store)())
    result = take_part(world, site_again, second)

    assert result.status == "declined"
    assert world.works["a"].trainings == trainings


def test_rule_09_a_campaign_with_a_tenth_of_the_noise_is_another_digest_and_refused():
    pinned = campaign_of()
    record = pinned.privacy.record.model_copy(
        update={"noise_multiplier": 0.08, "epsilon": 1e6, "clip_norm": 0.03}
    )
    weaker = campaign_of(privacy={"record": record.model_dump()})
    world = world_of(weaker)
    old = world.sites["a"]
    site = open_site("a", old.key, policy_of(pinned, "a"), world.ledgers["a"], world.outboxes["a"])

    take_part(world, site, plan_of(world))

    declined = read_document(world.store, keys.declined("tiny", 1, "a"), Declined)
    assert declined.reason == "policy"
    assert world.works["a"].trainings == 0


def test_rule_09_noise_and_event_of_a_plan_cannot_differ():
    plan = world_of(campaign_of()).assembly.noise

    with pytest.raises(ValidationError, match="does not account for this noise"):
        NoisePlan.model_validate(plan.model_dump() | {"noise_stddev": plan.noise_stddev / 10})


def test_rule_11_a_killed_training_is_tried_once_more_and_never_a_third_time():
    world = world_of(campaign_of())
    site = world.sites["a"]
    plan = plan_of(world)

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    world.works["a"] = FakeWork(world.assembly.shapes(1), on_train=die)
    for _ in range(2):
        with pytest.raises(Killed):
            take_part(world, site, plan)

    result = take_part(world, site, plan)

    declined = read_document(world.store, keys.declined("tiny", 1, "a"), Declined)
    assert (result.status, declined.reason) == ("declined", "no_update")
    assert world.works["a"].trainings == 2
    assert [e.kind for e in site.ledger.entries()] == ["genesis", "reserve"]


def test_rule_11_one_reserve_covers_the_retry_after_a_kill():
    world = world_of(campaign_of())
    site = world.sites["a"]
    plan = plan_of(world)

    class Killed(BaseException):
        pass

    def die():
        world.works["a"].on_train = lambda: None
        raise Killed

    world.works["a"].on_train = die
    with pytest.raises(Killed):
        take_part(world, site, plan)

    result = take_part(world, site, plan)

    assert result.status == "uploaded"
    assert [e.kind for e in site.ledger.entries()] == ["genesis", "reserve", "commit"]


def test_rule_10_two_campaigns_on_one_dataset_share_its_budget():
    first = campaign_of(id="first")
    second = campaign_of(id="second")
    world = world_of(first, campaigns=(first.digest, second.digest), epsilon=5.0)
    site = world.sites["a"]
    take_part(world, site, plan_of(world))
    other = world_of(second)
    moved = open_site(
        "a", other.sites["a"].key, site.policy, world.ledgers["a"], type(world.store)()
    )
    moved = replace(moved, key=site.key, ledger=site.ledger)

    result = client_round(
        moved, other.works["a"], assembly=other.assembly, store=other.store, plan=plan_of(other)
    )

    assert (result.status, result.reason) == ("declined", "budget")
    assert other.works["a"].trainings == 0


class DiskFull:
    """The store below a ledger or an outbox, which refuses one kind of write while ``full``."""

    def __init__(self, inner, *names):
        self.inner, self.names, self.full = inner, names, True

    def get(self, key, *, max_bytes=None):
        return self.inner.get(key, max_bytes=max_bytes)

    def list(self, prefix):
        return self.inner.list(prefix)

    def put_once(self, key, data):
        if self.full and any(name in key for name in self.names):
            raise StoreUnavailable("no space left on device")
        return self.inner.put_once(key, data)


def test_rule_11_a_draw_that_could_not_be_committed_is_never_drawn_again():
    world = world_of(campaign_of())
    disk = DiskFull(world.outboxes["a"], "files/")
    old = world.sites["a"]
    site = open_site("a", old.key, old.policy, world.ledgers["a"], disk)
    plan = plan_of(world)

    first = take_part(world, site, plan)
    disk.full = False
    second = take_part(world, site, plan)

    declined = read_document(world.store, keys.declined("tiny", 1, "a"), Declined)
    assert (first.status, second.status, declined.reason) == ("declined", "declined", "no_update")
    assert world.works["a"].trainings == 1


def test_rule_11_a_disk_that_takes_nothing_after_training_is_no_cause_to_try_again():
    world = world_of(campaign_of())
    disk = DiskFull(world.outboxes["a"], "files/", "end.json")
    old = world.sites["a"]
    site = open_site("a", old.key, old.policy, world.ledgers["a"], disk)

    result = take_part(world, site, plan_of(world))

    assert (result.status, result.reason) == ("declined", "no_update")
    assert world.works["a"].trainings == 1


def test_rule_11_a_ledger_that_is_away_after_training_delays_the_same_draw():
    world = world_of(campaign_of())
    disk = DiskFull(world.ledgers["a"], "000003")
    old = world.sites["a"]
    site = open_site("a", old.key, old.policy, disk, world.outboxes["a"])
    plan = plan_of(world)

    with pytest.raises(StoreUnavailable):
        take_part(world, site, plan)
    disk.full = False
    result = take_part(world, site, plan)

    assert result.status == "uploaded"
    assert world.works["a"].trainings == 1
    assert [e.kind for e in site.ledger.entries()] == ["genesis", "reserve", "commit"]


def test_rule_14_an_update_whose_charge_is_gone_from_the_ledger_does_not_leave():
    world = world_of(campaign_of())
    site = world.sites["a"]
    plan = plan_of(world)
    ledger = type(world.store)()
    ledger.put_once(keys.ledger_entry(1), world.ledgers["a"].get(keys.ledger_entry(1)))
    take_part(world, site, plan)
    restored = open_site("a", site.key, site.policy, ledger, world.outboxes["a"])
    elsewhere = type(world.store)()

    with pytest.raises(LedgerCorrupt, match="its charge is not on the ledger"):
        client_round(
            restored, world.works["a"], assembly=world.assembly, store=elsewhere, plan=plan
        )

    assert elsewhere.list("") == []
