"""Statements: what a site signs about its budget, and what a version promises."""

import pytest
from worlds import NO_PRIVACY, campaign_of, policy_of, world_of

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.errors import PrivacyError
from fl_core.privacy.policy import verdict
from fl_core.privacy.statement import (
    Budget,
    PrivacyStatement,
    budget_statement,
    privacy_statement,
    to_markdown,
)
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


def test_statement_states_the_worst_site_and_who_stated_nothing(world, budget):
    worse = budget.model_copy(update={"site": "b", "epsilon": budget.epsilon + 1})

    statement = privacy_statement(
        world.assembly.campaign, budgets={"b": worse, "a": budget}, round_number=3
    )

    assert [site.site for site in statement.sites] == ["a", "b"]
    assert statement.worst_epsilon == worse.epsilon
    assert statement.not_stated == ("c",)
    assert statement.epsilon == pytest.approx(budget.epsilon)
    assert from_bytes(PrivacyStatement, to_bytes(statement), what="statement") == statement


def test_statement_counts_the_rounds_so_far_and_not_the_whole_campaign(world):
    campaign = world.assembly.campaign

    first, last = (privacy_statement(campaign, budgets={}, round_number=n) for n in (1, 6))

    assert first.epsilon < last.epsilon
    assert last.epsilon == pytest.approx(7.93, abs=0.005)
    assert last.worst_epsilon is None


def test_page_begins_with_the_answer_and_holds_every_number(world, budget):
    statement = privacy_statement(world.assembly.campaign, budgets={"a": budget}, round_number=3)

    page = to_markdown(statement)

    answer = page.split("\n\n")[1]
    assert answer.startswith(f"**epsilon {statement.epsilon:.2f} at delta 1e-05** for each row")
    for number in ("3 rounds of 8 steps", "probability 0.1", "norm 0.3", "deviation 0.24", "PLD"):
        assert number in page
    assert f"| a | {budget.epsilon:.2f} | 8 | 1e-05 | PLD | 3 |" in page
    assert "Not stated in this round: b, c." in page
    assert "## Not covered" in page


def test_page_without_guarantee_says_so_first_and_why():
    campaign = campaign_of(privacy=NO_PRIVACY)

    statement = privacy_statement(campaign, budgets={}, round_number=1)
    page = to_markdown(statement)

    assert statement.guarantee == "none"
    assert statement.epsilon is None
    assert page.split("\n\n")[1] == (
        "**No guarantee is made for any row.** Reason given: made-up numbers, nothing to protect"
    )
    assert "epsilon" not in page


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
