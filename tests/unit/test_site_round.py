"""A site's round: the order of checks, charges and uploads, and what a retry may do."""

from dataclasses import replace

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.errors import RoundError
from fl_core.rounds.plan import open_round
from fl_core.rounds.site import Site
from fl_core.rounds.site_round import client_round
from fl_core.updates.manifest import Declined
from tests.worlds import NO_PRIVACY, NOW, World, campaign_of, world_of


def plan_of(world: World, number: int = 1):
    return open_round(world.assembly, world.store, round_number=number, now=NOW)


def take_part(world: World, site: Site, plan=None):
    return client_round(
        site,
        world.works[site.name],
        assembly=world.assembly,
        store=world.store,
        plan=plan_of(world) if plan is None else plan,
    )


def declined_of(world: World, site: str) -> Declined:
    return read_document(world.store, keys.declined("tiny", 1, site), Declined)


def with_policy(site: Site, **changes: object) -> Site:
    policy = site.policy.model_copy(update=changes)
    return replace(site, policy=policy)


def test_charge_is_on_the_ledger_before_training_begins():
    world = world_of(campaign_of())
    seen = []
    site = world.sites["a"]
    world.works["a"].on_train = lambda: seen.append([e.kind for e in site.ledger.entries()])

    take_part(world, site)

    assert seen == [["genesis", "reserve"]]


def test_update_is_in_the_outbox_before_anything_is_uploaded():
    world = world_of(campaign_of())
    site = world.sites["a"]
    prefix = keys.exchange(site.policy.dataset, world.assembly.digest, 1)
    uploaded = []
    put_once = world.store.put_once

    def watched(key: str, data: bytes) -> bool:
        if "/updates/" in key:
            uploaded.append((key.rsplit("/", 1)[1], site.outbox.committed(prefix) is not None))
        return put_once(key, data)

    world.store.put_once = watched

    take_part(world, site)

    assert [name for name, _ in uploaded] == [
        "budget.json",
        "payload.safetensors",
        "manifest.json",
    ]
    assert all(committed for _, committed in uploaded)


def test_second_run_of_a_round_sends_the_same_bytes_and_trains_no_more():
    world = world_of(campaign_of())
    site = world.sites["a"]
    take_part(world, site)
    before = world.store.get(keys.payload("tiny", 1, "a"))
    for name in world.store.list(keys.update_prefix("tiny", 1, "a")):
        del world.store._objects[name]

    take_part(world, site)

    assert world.store.get(keys.payload("tiny", 1, "a")) == before
    assert world.works["a"].trainings == 1


def test_caught_failure_is_one_code_outside_and_is_never_trained_again():
    world = world_of(campaign_of())
    site = world.sites["a"]
    world.works["a"].fails_with = ValueError("patient 4711 has no label")

    first = take_part(world, site)
    world.works["a"].fails_with = None
    second = take_part(world, site)

    declined = declined_of(world, "a")
    assert (first.status, second.status) == ("declined", "declined")
    assert (declined.reason, declined.rules) == ("no_update", ())
    assert "4711" not in declined.model_dump_json()
    assert world.works["a"].trainings == 1
    assert [e.kind for e in site.ledger.entries()] == ["genesis", "reserve"]


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"campaigns": ()}, "campaigns"),
        ({"delta": 1e-6}, "delta"),
        ({"base_models": ("0" * 64,)}, "base_models"),
        ({"suites": ("0" * 64,)}, "suites"),
    ],
    ids=["not approved", "larger delta", "other base model", "other suite"],
)
def test_policy_refuses_before_anything_is_charged(changes, detail):
    world = world_of(campaign_of())
    site = with_policy(world.sites["a"], **changes)

    result = take_part(world, site)

    assert result.status == "declined"
    assert detail in result.detail
    assert declined_of(world, "a").reason == "policy"
    assert declined_of(world, "a").rules == ()
    assert world.works["a"].trainings == 0
    assert len(site.ledger.entries()) == 1


def test_campaign_without_privacy_needs_the_policy_to_allow_it():
    world = world_of(campaign_of(privacy=NO_PRIVACY))
    site = with_policy(world.sites["a"], without_guarantee=False)

    result = take_part(world, site)

    assert (result.status, result.reason) == ("declined", "policy")
    assert world.works["a"].trainings == 0


def test_plan_of_another_campaign_is_ignored_and_answered_by_nothing():
    world = world_of(campaign_of())
    other = plan_of(world).model_copy(update={"campaign_digest": "0" * 64})

    with pytest.raises(RoundError, match="names another campaign"):
        take_part(world, world.sites["a"], other)

    assert world.store.list(keys.update_prefix("tiny", 1, "a")) == []


def test_round_past_the_campaigns_last_is_ignored():
    world = world_of(campaign_of())
    beyond = plan_of(world).model_copy(update={"round": 7})

    with pytest.raises(RoundError, match="past max_rounds"):
        take_part(world, world.sites["a"], beyond)


def test_plan_without_the_site_is_ignored():
    world = world_of(campaign_of())
    without = plan_of(world).model_copy(update={"cohort": ("b", "c")})

    with pytest.raises(RoundError, match="not in the cohort"):
        take_part(world, world.sites["a"], without)
