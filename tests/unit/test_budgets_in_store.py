"""Statements are found in the store over all campaigns, and only what a site signed counts."""

import pytest
from worlds import AFTER_DEADLINE, NOW, campaign_of, open_site, policy_of, world_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.rounds.budgets import budgets_until, closed_rounds, latest_budgets
from fl_core.rounds.charging import charge_round
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import examine_site
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.release import release_round
from fl_core.rounds.site_round import client_round
from fl_core.updates.records import BudgetStatement


def run_rounds(world, count):
    """Run whole rounds of a world in order, as the coordinator and its sites do."""
    for number in range(1, count + 1):
        plan = open_round(world.assembly, world.store, round_number=number, now=NOW)
        for name, site in world.sites.items():
            client_round(
                site, world.works[name], assembly=world.assembly, store=world.store, plan=plan
            )
        answers = {
            name: examine_site(world.assembly, world.store, plan, site=name) for name in world.sites
        }
        collected = close_collection(
            world.assembly, world.store, plan, answers=answers, now=AFTER_DEADLINE
        )
        charge = charge_round(world.assembly, world.store, plan, collected=collected)
        release_round(
            world.assembly, world.store, plan, collected=collected, charge=charge, now=NOW
        )


@pytest.fixture
def world():
    world = world_of(campaign_of())
    run_rounds(world, 2)
    return world


def test_latest_statement_of_every_site_is_found(world):
    found = latest_budgets(world.store, ("a", "b", "stranger"))

    assert found["a"].statement.round == 2
    assert found["a"].statement.ledger_seq > 2
    assert found["b"].statement.site == "b"
    assert (found["stranger"].statement, found["stranger"].complaint) == (None, "")
    assert closed_rounds(world.store, "tiny") == 2
    assert closed_rounds(world.store, "other") == 0


def test_statement_of_a_later_campaign_on_the_same_ledger_counts(world):
    second = campaign_of(id="second", max_rounds=2)
    policy = policy_of(
        second, "a", series=world.sites["a"].policy.series, campaigns=(second.digest,)
    )
    site = open_site("a", world.sites["a"].key, policy, world.ledgers["a"], world.outboxes["a"])
    assembly = open_campaign(world.store, second)
    plan = open_round(assembly, world.store, round_number=1, now=NOW)
    client_round(site, world.works["a"], assembly=assembly, store=world.store, plan=plan)

    (found,) = latest_budgets(world.store, ("a",)).values()

    assert found.statement.campaign_digest == second.digest
    # 3 rounds of 8 steps are on the ledger, whichever campaign they were for.
    assert [event.count for event in found.statement.events] == [24]


def replaced(world, key, **changes):
    """Put a changed statement under a key, as only the owner of the store could."""
    data = world.store.get(key)
    statement = from_bytes(BudgetStatement, data, what=key)
    world.store._objects[key] = to_bytes(statement.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epsilon": 0.01}, "not signed by its key"),
        ({"signature": ""}, "not signed by its key"),
        ({"round": 1}, "about something else"),
        ({"site": "b"}, "about something else"),
        ({"campaign_digest": "f" * 64}, "about something else"),
    ],
    ids=["figure", "signature", "round", "site", "campaign"],
)
def test_statement_that_its_site_did_not_sign_is_not_one(world, changes, complaint):
    replaced(world, keys.budget("tiny", 2, "a"), **changes)

    found = latest_budgets(world.store, ("a",))["a"]

    assert found.statement is None
    assert complaint in found.complaint


def test_site_that_withholds_its_statement_states_nothing():
    world = world_of(campaign_of(), budget_statement="withheld")

    run_rounds(world, 1)

    assert latest_budgets(world.store, ("a",))["a"].statement is None
    assert not [key for key in world.store.list("campaigns/") if key.endswith("budget.json")]


def test_statements_until_a_round_are_the_last_ones_before_it(world):
    first = budgets_until(world.store, "tiny", round_number=1)
    both = budgets_until(world.store, "tiny", round_number=2)

    assert {s: b.round for s, b in first.items()} == {"a": 1, "b": 1, "c": 1}
    assert {s: b.round for s, b in both.items()} == {"a": 2, "b": 2, "c": 2}
