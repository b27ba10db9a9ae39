"""Statements: what a site signs about its budget, and what a version promises."""

import io
import math
from datetime import timedelta

import pytest
from rich.console import Console
from rich.markdown import Markdown
from worlds import NO_PRIVACY, NOW, campaign_of, policy_of, world_of

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.errors import PrivacyError
from fl_core.privacy.policy import verdict
from fl_core.privacy.stated_budget import require_follows
from fl_core.privacy.statement import (
    Budget,
    PrivacyStatement,
    ReleaseFacts,
    budget_statement,
    privacy_statement,
    to_markdown,
)
from fl_core.privacy.statement_documents import AuditFinding, RawUpdates
from fl_core.privacy.statement_text import best_guess
from fl_core.updates.records import NonPrivateEvent
from fl_core.updates.signing import public_hex, verify_signature

PLAN = "a" * 64


def budget_of(world, site, *, rounds):
    own, assembly = world.sites[site], world.assembly
    for number in range(1, rounds + 1):
        own.ledger.reserve(
            campaign_digest=assembly.digest,
            round_number=number,
            plan_sha256=PLAN,
            event=assembly.noise.event,
            require=lambda events: verdict(own.policy, events, assembly.noise.event),
        )
    return budget_statement(
        own.key,
        site=site,
        campaign_digest=assembly.digest,
        round_number=rounds,
        record=Budget(own.ledger, own.policy, assembly.noise.event),
    )


@pytest.fixture(scope="module")
def world():
    return world_of(campaign_of())


@pytest.fixture(scope="module")
def budget(world):
    return budget_of(world, "a", rounds=3)


def test_budget_is_signed_and_speaks_of_the_ledgers_end(world, budget):
    site = world.sites["a"]

    assert verify_signature(budget, public_hex(site.key))
    assert (budget.ledger_seq, budget.ledger_head_sha256) == site.ledger.head()
    assert (budget.site, budget.dataset, budget.round) == ("a", "data-a", 3)
    assert (budget.accountant, budget.rounds_left) == ("pld", 3)
    assert 0 < budget.epsilon < budget.epsilon_limit


def test_budget_of_a_dataset_without_guarantee_cannot_be_stated():
    world = world_of(campaign_of())
    site = world.sites["b"]
    site.ledger.reserve(
        campaign_digest=world.assembly.digest,
        round_number=1,
        plan_sha256=PLAN,
        event=NonPrivateEvent(),
        require=lambda _events: None,
    )

    with pytest.raises(PrivacyError, match="no finite epsilon"):
        budget_statement(
            site.key,
            site="b",
            campaign_digest=world.assembly.digest,
            round_number=1,
            record=Budget(site.ledger, site.policy, NonPrivateEvent()),
        )


def test_budget_carries_the_events_that_it_follows_from(world, budget):
    (event,) = budget.events

    # 3 rounds of 8 equal steps are one event; noise 0.8 at rate 0.1 is the tiny campaign's.
    assert event.count == 24
    assert event.event.sampling_rate == 0.1
    assert event.event.event.noise_multiplier == 0.8
    assert budget.terms == world.sites["a"].policy.terms
    require_follows(budget)


@pytest.fixture(scope="module")
def worse(budget):
    """Site b, honest, after one more round."""
    return budget_of(world_of(campaign_of()), "b", rounds=4)


def test_statement_states_the_worst_site_and_who_stated_nothing(world, budget, worse):
    statement = privacy_statement(
        world.assembly.campaign, budgets={"b": worse, "a": budget}, round_number=3
    )

    assert [site.site for site in statement.sites] == ["a", "b"]
    assert (statement.worst_site, statement.worst_epsilon) == ("b", worse.epsilon)
    assert worse.epsilon > budget.epsilon
    assert statement.not_stated == ("c",)
    assert statement.record.epsilon == pytest.approx(budget.epsilon)
    assert from_bytes(PrivacyStatement, to_bytes(statement), what="statement") == statement


def test_budget_that_does_not_follow_from_its_events_is_not_believed(world, budget):
    lie = budget.model_copy(update={"epsilon": budget.epsilon / 2})

    statement = privacy_statement(world.assembly.campaign, budgets={"a": lie}, round_number=3)

    assert statement.sites == ()
    assert statement.worst_epsilon is None
    (refused,) = statement.not_believed
    assert refused.site == "a"
    assert "its own events come to" in refused.complaint
    assert "Not believed: a states epsilon" in to_markdown(statement)


def test_both_accountants_are_shown_and_one_is_named_with_its_reason(world, budget):
    statement = privacy_statement(world.assembly.campaign, budgets={"a": budget}, round_number=6)

    # 48 steps at noise 0.8, rate 0.1, delta 1e-5: 7.93 by PLD, 9.11 by RDP (SOUNDNESS, head).
    assert statement.record.epsilon_pld == pytest.approx(7.93, abs=0.005)
    assert statement.record.epsilon_rdp == pytest.approx(9.11, abs=0.005)
    spent = statement.sites[0].record
    assert spent.epsilon_pld == pytest.approx(spent.epsilon)
    assert spent.epsilon_rdp > spent.epsilon
    assert "one series approved before the first" in spent.why
    assert "7.93 by PLD (RDP 9.11)" in to_markdown(statement)


def test_statement_counts_the_rounds_so_far_and_not_the_whole_campaign(world):
    campaign = world.assembly.campaign

    first, last = (privacy_statement(campaign, budgets={}, round_number=n) for n in (1, 6))

    assert first.record.epsilon < last.record.epsilon
    assert last.record.epsilon == pytest.approx(7.93, abs=0.005)
    assert last.record.epsilon_limit == 8.0
    assert last.worst_epsilon is None


def test_page_begins_with_the_answer_and_holds_every_number(world, budget):
    statement = privacy_statement(world.assembly.campaign, budgets={"a": budget}, round_number=3)

    page = to_markdown(statement)

    answer = page.split("\n\n")[1]
    assert answer.startswith(
        f"**epsilon {statement.record.epsilon:.2f} at delta 1e-05** for each row"
    )
    for number in ("3 rounds of 8 steps", "probability 0.1", "norm 0.3", "deviation 0.24", "PLD"):
        assert number in page
    assert f"| a | row | {budget.epsilon:.2f} | 8 | 1e-05 | PLD |" in page
    assert "Charged: 24 x (noise 0.8 at rate 0.1)." in page
    assert "Not stated up to this round: b, c." in page
    assert "## Not covered" in page


@pytest.mark.parametrize(
    ("epsilon", "delta", "expected"),
    [
        (0.0, 0.0, 0.5),  # Nothing is learned: half of the guesses, as before.
        (0.0, 1.0, 1.0),  # Everything may be published.
        (math.log(3), 0.0, 0.75),  # 3 / 4 by hand; randomized response at 3 to 1.
        (math.log(3), 0.2, 0.8),  # 3.2 / 4 by hand.
        (800.0, 1e-5, 1.0),
    ],
)
def test_best_guess_is_the_accuracy_that_epsilon_and_delta_allow(epsilon, delta, expected):
    assert best_guess(epsilon, delta=delta) == pytest.approx(expected, abs=1.01e-4)


def test_heads_of_the_table_of_sites_stand_whole_on_a_screen_of_eighty_columns(world, budget):
    statement = privacy_statement(world.assembly.campaign, budgets={"a": budget}, round_number=3)
    screen = Console(width=80, file=io.StringIO())

    screen.print(Markdown(to_markdown(statement)))

    shown = screen.file.getvalue()
    (heads,) = [line for line in shown.splitlines() if "counts" in line and "limit" in line]
    for word in ("site", "counts", "epsilon", "limit", "delta", "by", "other", "round", "ledger"):
        assert f" {word} " in heads


def test_page_says_what_epsilon_means_for_a_guess(world, budget):
    statement = privacy_statement(world.assembly.campaign, budgets={"a": budget}, round_number=3)

    answer = to_markdown(statement).split("\n\n")[1]

    # 24 steps of the demo are epsilon 6.06 at delta 1e-5: 1 / (1 + e^-6.06) = .99767.
    assert "that row took part (50 %) is right in at most 99.77 % of cases" in answer


def test_page_without_guarantee_says_so_first_and_why():
    campaign = campaign_of(privacy=NO_PRIVACY)

    statement = privacy_statement(campaign, budgets={}, round_number=1)
    page = to_markdown(statement)

    assert statement.guarantee == "none"
    assert statement.record is None
    assert statement.not_stated == ()
    assert page.split("\n\n")[1] == (
        "**No guarantee is made for any row.** Reason given: made-up numbers, nothing to protect"
    )
    assert "epsilon" not in page


def record_of(**changes):
    record = campaign_of().privacy.record.model_dump(exclude_none=True)
    return campaign_of(privacy={"record": record | changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unit": "patient_id", "max_rows_per_unit": 4}, "all rows of one patient_id, at most 4"),
        ({"clip_norm": {"adapter": 0.3, "head": 0.4}}, "0.3 for the LoRA pairs, 0.4 for the head"),
        (
            {"adaptive_clip": {"quantile": 0.5, "count_stddev": 2.0}},
            "starts at 0.3 and follows the 0.5 quantile; the count it follows has noise 2",
        ),
        ({"sampling_rate": 1.0, "noise_multiplier": 9.0}, "every round counts in full"),
    ],
    ids=["unit", "groups", "adaptive", "all"],
)
def test_page_says_whom_and_how(changes, said):
    statement = privacy_statement(record_of(**changes), budgets={}, round_number=1)

    assert said in to_markdown(statement)


def test_groups_of_clip_norms_show_the_noise_of_their_root_sum_of_squares():
    campaign = record_of(clip_norm={"adapter": 0.3, "head": 0.4})

    noise = privacy_statement(campaign, budgets={}, round_number=1).record.noise

    # sqrt(0.09 + 0.16) = 0.5; times 0.8 is 0.4.
    assert noise.clip.norm == pytest.approx(0.5)
    assert noise.noise_stddev == pytest.approx(0.4)


CLIENT = {
    "epsilon": 20.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "noise_multiplier": 1.0,
}


def client_campaign(mechanism, *, record=False):
    privacy = {"client": CLIENT | {"mechanism": mechanism}}
    if record:
        privacy["record"] = campaign_of().privacy.record.model_dump(exclude_none=True)
    return campaign_of(privacy=privacy)


def holds(statement, who, level):
    (found,) = [c.holds for c in statement.claims if (c.against, c.level) == (who, level)]
    return found


def test_central_whole_site_promise_claims_nothing_against_the_coordinator():
    statement = privacy_statement(client_campaign("gaussian"), budgets={}, round_number=1)

    assert statement.guarantee == "client_dp"
    assert statement.client.charged_by == "coordinator"
    assert statement.client.accountant == "gdp"
    # One release at noise 1: epsilon 4.377 at 1e-5, by bisection on Balle and Wang's delta.
    assert statement.client.epsilon == pytest.approx(4.3772, abs=1e-3)
    assert holds(statement, "the coordinator", "client").startswith("nothing")
    assert any("un-noised" in item for item in statement.outside_claim)
    assert statement.not_stated == ()


def test_local_whole_site_promise_holds_against_the_coordinator_too():
    statement = privacy_statement(client_campaign("local_gaussian"), budgets={}, round_number=1)

    assert statement.client.charged_by == "site"
    assert holds(statement, "the coordinator", "client").startswith("the same")
    assert not any("un-noised" in item for item in statement.outside_claim)
    assert statement.not_stated == ("a", "b", "c")


def test_two_promises_are_two_budgets_in_one_statement():
    campaign = client_campaign("gaussian", record=True)

    statement = privacy_statement(campaign, budgets={}, round_number=2)
    answers = to_markdown(statement).split("\n\n")[1:3]

    assert statement.guarantee == "record_dp and client_dp"
    assert "for each row of each site" in answers[0]
    assert "for the whole data of each site" in answers[1]
    assert holds(statement, "the coordinator", "record").startswith("the same")
    assert holds(statement, "the coordinator", "client").startswith("nothing")


def test_page_names_who_could_read_raw_updates_and_how_long():
    raw = RawUpdates(
        readers="the coordinator", opened=NOW, deleted=NOW + timedelta(minutes=3, seconds=30)
    )

    statement = privacy_statement(
        client_campaign("gaussian"),
        budgets={},
        round_number=1,
        facts=ReleaseFacts(raw_updates=raw),
    )

    assert "the coordinator: from 2026-03-01 12:00 to 2026-03-01 12:03 UTC, 3.5 minutes" in (
        to_markdown(statement)
    )


def test_fixed_upload_time_is_stated_and_free_time_is_outside_the_claim():
    cohort = {"deadline_s": 300, "upload_after_s": 120}

    free = privacy_statement(campaign_of(), budgets={}, round_number=1)
    fixed = privacy_statement(campaign_of(cohort=cohort), budgets={}, round_number=1)

    assert free.upload_after_s is None
    assert any("durations may reveal" in item for item in free.outside_claim)
    assert fixed.upload_after_s == 120
    assert not any("durations may reveal" in item for item in fixed.outside_claim)
    assert "every site uploads 120 s after the plan" in to_markdown(fixed)


def test_audit_is_shown_as_a_lower_bound_beside_the_claim():
    finding = AuditFinding(
        number=1,
        rows="public",
        verdict="not refuted",
        lower_bound=1.25,
        ceiling=9.5,
        claimed_epsilon=7.93,
        confidence=0.95,
        membership_auc=0.51,
    )

    without = to_markdown(privacy_statement(campaign_of(), budgets={}, round_number=1))
    page = to_markdown(
        privacy_statement(
            campaign_of(), budgets={}, round_number=1, facts=ReleaseFacts(audits=(finding,))
        )
    )

    assert "No audit of this campaign was there" in without
    assert "| 1 | public | 1.25 at 95% | 9.50 | 7.93 | 0.51 | not refuted |" in page


def test_policy_of_another_delta_is_stated_as_the_site_set_it(world, budget):
    strict = policy_of(world.assembly.campaign, "a", delta=1e-6, epsilon=12.0)
    site = world.sites["a"]

    stated = budget_statement(
        site.key,
        site="a",
        campaign_digest=world.assembly.digest,
        round_number=3,
        record=Budget(site.ledger, strict, world.assembly.noise.event),
    )

    assert stated.delta == 1e-6
    assert stated.epsilon > budget.epsilon
