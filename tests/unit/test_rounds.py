"""The round protocol step by step, in memory, with real signatures and ledgers."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, read_document, to_bytes
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.errors import CampaignError, RoundError
from fl_core.rounds.adapters import read_state
from fl_core.rounds.charging import charge_round, read_budgets
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import examine_site
from fl_core.rounds.plan import (
    available_sites,
    open_campaign,
    open_round,
    read_assembly,
    read_outcome,
)
from fl_core.rounds.release import release_round
from fl_core.rounds.site_round import client_round
from fl_core.rounds.status import campaign_status, next_round
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.records import GateReport
from fl_core.updates.signing import generate_key, public_hex, sign
from tests.round_steps import collect, finish, plan_of, take_part
from tests.worlds import AFTER_DEADLINE, NO_PRIVACY, NOW, SUITE, campaign_of, world_of

OTHER_ADAPTER = campaign_of().adapter.model_copy(update={"rank": 1})


def test_second_caller_reads_the_first_plan_and_its_deadline():
    world = world_of(campaign_of())
    first = plan_of(world)

    again = open_round(world.assembly, world.store, round_number=1, now=NOW + timedelta(minutes=5))

    assert again == first


def test_round_releases_the_mean_of_the_accepted_updates():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)

    outcome = finish(world)

    plan = plan_of(world)
    before = read_state(world.store, world.assembly.campaign, plan.base_hash).tensors()
    after = read_state(world.store, world.assembly.campaign, outcome.result_hash).tensors()
    payloads = [
        world.assembly.codec.decode(world.store.get(keys.payload("tiny", 1, site)))
        for site in "abc"
    ]
    assert outcome.status == "released"
    assert outcome.contributors == ("a", "b", "c")
    for name in before:
        expected = before[name] + np.mean([p[name] for p in payloads], axis=0)
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


def test_declared_weights_are_public_sizes_of_the_roster():
    campaign = campaign_of(sites=("a", "b"), weights="declared")
    world = world_of(campaign_of(sites=("a", "b")))
    store = type(world.store)()
    assembly = open_campaign(store, campaign)
    keys_by_site = {site: world.sites[site].key for site in "ab"}
    for site, declared in (("a", 64), ("b", 192)):
        enrol(
            store,
            RosterEntry(
                site=site,
                signing_key=public_hex(keys_by_site[site]),
                declared_examples=declared,
                since=NOW,
            ),
        )
    approved = {
        site: world.sites[site].policy.model_copy(update={"campaigns": (campaign.digest,)})
        for site in "ab"
    }
    plan = open_round(assembly, store, round_number=1, now=NOW)
    for site in "ab":
        own = world.sites[site]
        moved = replace(own, policy=approved[site])
        client_round(moved, world.works[site], assembly=assembly, store=store, plan=plan)
    answers = {s: examine_site(assembly, store, plan, site=s) for s in "ab"}
    collected = close_collection(assembly, store, plan, answers=answers, now=NOW)
    charge = charge_round(assembly, store, plan, collected=collected)

    outcome = release_round(
        assembly, store, plan, collected=collected, charge=charge, now=AFTER_DEADLINE
    )

    before = read_state(store, campaign, plan.base_hash).tensors()
    after = read_state(store, campaign, outcome.result_hash).tensors()
    a, b = (assembly.codec.decode(store.get(keys.payload("tiny", 1, s))) for s in "ab")
    name = "layer.query.lora_B"
    np.testing.assert_allclose(
        after[name], before[name] + 0.25 * a[name] + 0.75 * b[name], atol=1e-6
    )


def test_collection_waits_for_pending_sites_until_the_deadline():
    world = world_of(campaign_of())
    take_part(world, "a")
    take_part(world, "b")

    assert collect(world, now=NOW) is None
    collected = collect(world, now=AFTER_DEADLINE)

    assert collected.accepted == ["a", "b"]
    assert collected.answers["c"].status == "missing"
    assert collected.has_quorum


def test_late_update_is_ignored_after_collection():
    world = world_of(campaign_of())
    take_part(world, "a")
    take_part(world, "b")
    first = collect(world)

    take_part(world, "c")
    outcome = finish(world)

    assert collect(world) == first
    assert outcome.contributors == ("a", "b")


def test_too_few_updates_skip_the_round_and_release_nothing():
    world = world_of(campaign_of())
    take_part(world, "a")

    outcome = finish(world)

    assert outcome.status == "skipped"
    assert outcome.result_hash is None
    assert next_round(world.assembly, world.store) == 2


def test_next_round_starts_from_the_released_adapter():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)

    outcome = finish(world)

    assert plan_of(world, 2).base_hash == outcome.result_hash


def test_round_after_a_skipped_one_starts_from_the_last_release():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    released = finish(world, 1)
    finish(world, 2)

    assert plan_of(world, 3).base_hash == released.result_hash


def test_bad_update_is_recorded_and_left_out():
    world = world_of(campaign_of())
    for site in "ab":
        take_part(world, site)
    take_part(world, "c")
    forged = UpdateManifest.model_validate_json(world.store.get(keys.manifest("tiny", 1, "c")))
    stranger = sign(forged.model_copy(update={"signature": ""}), generate_key())
    world.store._objects[keys.manifest("tiny", 1, "c")] = to_bytes(stranger)

    collected = collect(world)

    assert collected.accepted == ["a", "b"]
    assert collected.answers["c"].status == "rejected"
    assert collected.answers["c"].reason == "signature"


def test_manifest_of_an_earlier_round_is_worth_nothing_in_the_next():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    finish(world, 1)
    plan_of(world, 2)
    for name in ("payload.safetensors", "manifest.json"):
        data = world.store.get(keys.update_prefix("tiny", 1, "a") + name)
        world.store.put_once(keys.update_prefix("tiny", 2, "a") + name, data)

    answer = examine_site(world.assembly, world.store, plan_of(world, 2), site="a")

    assert answer.status == "rejected"
    assert answer.reason == "round"


def test_release_without_a_charge_is_refused():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    plan, collected = plan_of(world), collect(world)
    charge = charge_round(world.assembly, world.store, plan, collected=collected)
    short = charge.model_copy(update={"sites": {"a": charge.sites["a"]}})

    outcome = release_round(
        world.assembly, world.store, plan, collected=collected, charge=short, now=NOW
    )

    assert (outcome.status, outcome.result_hash) == ("failed", None)
    assert "no charge is recorded for the accepted update of site 'b'" in outcome.reason
    assert keys.release("tiny", 1) not in world.store.list("")


def test_site_whose_gate_breaks_declines_with_rule_names_only():
    world = world_of(campaign_of())
    world.works["c"].report = GateReport(suite_sha256=SUITE, passed=False, failed=("minimum_rows",))

    result = take_part(world, "c")

    answer = examine_site(world.assembly, world.store, plan_of(world), site="c")
    assert result.status == "declined"
    assert (answer.status, answer.reason, answer.rules) == ("declined", "gate", ("minimum_rows",))
    assert world.works["c"].trainings == 0
    assert len(world.sites["c"].ledger.entries()) == 1


def test_site_out_of_budget_declines_and_is_not_asked_again():
    world = world_of(campaign_of(), epsilon=5.0)

    for number in (1, 2):
        for site in "abc":
            take_part(world, site, number)
        finish(world, number)

    answers = read_document(world.store, keys.collected("tiny", 2), type(collect(world, 2))).answers
    assert {a.reason for a in answers.values()} == {"budget"}
    assert available_sites(world.assembly, world.store) == []
    assert next_round(world.assembly, world.store) == "budget spent"


def test_campaign_goes_on_with_the_sites_that_have_budget():
    world = world_of(campaign_of())
    poor = world.sites["a"]
    world.sites["a"] = replace(poor, policy=poor.policy.model_copy(update={"epsilon": 1.0}))

    for site in "abc":
        take_part(world, site)
    outcome = finish(world)

    assert outcome.contributors == ("b", "c")
    assert plan_of(world, 2).cohort == ("b", "c")


def test_campaign_ends_when_fewer_sites_than_the_stated_quorum_can_pay():
    world = world_of(campaign_of(cohort={"quorum": 2}))
    for site in "ab":
        policy = world.sites[site].policy.model_copy(update={"epsilon": 1.0})
        world.sites[site] = replace(world.sites[site], policy=policy)

    for site in "abc":
        take_part(world, site)
    outcome = finish(world)

    assert outcome.status == "skipped"
    assert available_sites(world.assembly, world.store) == ["c"]
    assert next_round(world.assembly, world.store) == "budget spent"


def test_budget_statement_beside_the_manifest_says_what_is_spent():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    collected = collect(world)

    budgets = read_budgets(world.assembly, world.store, plan_of(world), collected=collected)

    # 8 steps of noise 0.8 at rate 0.1 are 4.26 at delta 1e-5 by PLD (dp_accounting 0.6.0).
    assert sorted(budgets) == ["a", "b", "c"]
    assert budgets["a"].epsilon == pytest.approx(4.26, abs=0.01)
    assert budgets["a"].rounds_left == 5


def test_budget_statement_with_a_forged_signature_counts_as_not_stated():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    key = keys.budget("tiny", 1, "a")
    stated = read_budgets(world.assembly, world.store, plan_of(world), collected=collect(world))[
        "a"
    ]
    world.store._objects[key] = to_bytes(stated.model_copy(update={"epsilon": 0.1}))

    budgets = read_budgets(world.assembly, world.store, plan_of(world), collected=collect(world))

    assert sorted(budgets) == ["b", "c"]


def test_campaign_without_privacy_charges_nothing_at_the_coordinator():
    world = world_of(campaign_of(privacy=NO_PRIVACY))
    for site in "abc":
        take_part(world, site)

    outcome = finish(world)

    charge = charge_round(world.assembly, world.store, plan_of(world), collected=collect(world))
    assert outcome.status == "released"
    assert charge.sites == {}
    assert [e.event.kind for e in world.sites["a"].ledger.entries()[1:2]] == ["non_private"]


def test_id_of_another_campaign_is_refused():
    world = world_of(campaign_of())
    before = world.store.list("")

    with pytest.raises(CampaignError, match="taken by another campaign"):
        open_campaign(world.store, campaign_of(max_rounds=5, adapter=OTHER_ADAPTER))

    assert world.store.list("") == before


def test_opening_the_same_campaign_again_changes_nothing():
    world = world_of(campaign_of())
    before = world.store.list("")

    open_campaign(world.store, campaign_of())

    assert world.store.list("") == before


def test_unknown_campaign_is_an_error_with_a_hint():
    world = world_of(campaign_of())

    with pytest.raises(CampaignError, match="no campaign 'other'"):
        read_assembly(world.store, "other")


@pytest.mark.parametrize("number", [0, 7])
def test_round_outside_the_campaign_is_refused(number):
    world = world_of(campaign_of())

    with pytest.raises(RoundError, match="outside campaign"):
        open_round(world.assembly, world.store, round_number=number, now=NOW)


def test_status_is_read_from_the_store_alone():
    world = world_of(campaign_of(max_rounds=1))
    for site in "abc":
        take_part(world, site)
    finish(world)

    status = campaign_status(read_assembly(world.store, "tiny"), world.store)

    assert status.end == "finished"
    assert status.rounds[0].outcome == read_outcome(world.store, "tiny", 1)
    assert status.rounds[0].bytes_up == 3 * status.rounds[0].answers["a"].payload_bytes
    assert status.rounds[0].bytes_down > 0


def test_answer_names_the_manifest_by_hash():
    world = world_of(campaign_of())
    take_part(world, "a")

    answer = examine_site(world.assembly, world.store, plan_of(world), site="a")

    manifest = read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
    assert answer.manifest_sha256 == document_sha256(manifest)
