"""A site that is revoked, or changes its key, while a round is open."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.campaign.roster import RosterEntry, enrol, latest_roster, revoke, rotate
from fl_core.rounds.collection import examine_site
from fl_core.rounds.status import next_round
from fl_core.updates.manifest import Declined
from fl_core.updates.signing import generate_key, public_hex, sign
from tests.round_steps import collect, finish, plan_of, take_part
from tests.worlds import AFTER_DEADLINE, NOW, campaign_of, world_of


def revoke_c(world):
    revoke(world.store, "c", now=NOW, reason="its key was stolen")


def test_update_of_a_site_that_is_revoked_before_the_round_goes_on_is_left_out():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    revoke_c(world)

    outcome = finish(world)

    answer = collect(world).answers["c"]
    assert (answer.status, answer.reason) == ("rejected", "revoked")
    assert outcome.contributors == ("a", "b")


def test_round_does_not_wait_for_a_site_that_is_revoked():
    world = world_of(campaign_of())
    for site in "ab":
        take_part(world, site)
    assert collect(world, now=NOW) is None

    revoke_c(world)

    assert collect(world, now=NOW).accepted == ["a", "b"]


def test_revoking_changes_no_collection_that_is_frozen():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    frozen = collect(world)

    revoke_c(world)
    outcome = finish(world)

    assert collect(world) == frozen
    assert outcome.contributors == ("a", "b", "c")


def test_revoked_site_is_not_asked_in_the_next_round():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    finish(world)

    revoke_c(world)

    assert next_round(world.assembly, world.store) == 2
    assert plan_of(world, 2).cohort == ("a", "b")


def test_site_that_changes_its_key_while_a_round_is_open_is_judged_by_the_plans_roster():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    old = latest_roster(world.store).entry("c")
    new = old.model_copy(update={"signing_key": public_hex(generate_key()), "since": NOW})
    rotate(world.store, new, old_key=old.signing_key)

    collected = collect(world, now=AFTER_DEADLINE)

    assert collected.accepted == ["a", "b", "c"]


@pytest.mark.parametrize("reason", ["budget", "left"])
def test_site_that_is_out_of_budget_or_has_left_is_not_asked_again(reason):

    world = world_of(campaign_of())
    for site in "ab":
        take_part(world, site)
    declined = Declined(campaign_digest=world.assembly.digest, round=1, site="c", reason=reason)
    signed = sign(declined, world.sites["c"].key)
    world.store.put_once(keys.declined("tiny", 1, "c"), to_bytes(signed))

    outcome = finish(world)

    answer = examine_site(world.assembly, world.store, plan_of(world), site="c")
    assert (answer.status, answer.reason) == ("declined", reason)
    assert outcome.status == "released"
    assert plan_of(world, 2).cohort == ("a", "b")


def comes_back(world, site):
    """Enrol a site under another key, as a person confirmed."""
    key = generate_key()
    entry = RosterEntry(site=site, signing_key=public_hex(key), since=NOW)
    enrol(world.store, entry, is_confirmed=True)
    return key


@pytest.mark.parametrize("is_revoked_first", [True, False], ids=["revoked", "key-lost"])
def test_what_a_withdrawn_key_signed_does_not_count_when_the_site_is_back(is_revoked_first):
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    if is_revoked_first:
        revoke_c(world)
    comes_back(world, "c")

    outcome = finish(world)

    answer = collect(world).answers["c"]
    assert (answer.status, answer.reason) == ("rejected", "revoked")
    assert outcome.contributors == ("a", "b")


def test_update_counts_when_the_key_that_signed_it_was_admitted_again():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    known = latest_roster(world.store).entry("c")
    revoke_c(world)
    enrol(world.store, known, is_confirmed=True)

    assert collect(world).accepted == ["a", "b", "c"]


def test_site_is_asked_again_when_the_key_that_said_it_left_is_not_its_key_any_more():
    world = world_of(campaign_of())
    for site in "ab":
        take_part(world, site)
    declined = Declined(campaign_digest=world.assembly.digest, round=1, site="c", reason="left")
    signed = sign(declined, world.sites["c"].key)
    world.store.put_once(keys.declined("tiny", 1, "c"), to_bytes(signed))
    finish(world)
    comes_back(world, "c")

    assert plan_of(world, 2).cohort == ("a", "b", "c")
