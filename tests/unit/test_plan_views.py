"""A plan at a terminal: eighty columns, whole figures, and the answers in words."""

import io

import pytest
from rich.console import Console

from fl_core.privacy.plan_documents import BudgetPlan, CampaignPlan, RoundEpsilon, TuningCost
from flows.cli.plan_views import budgets_table, schedule_table, sentences


def budget(site="hospital-north", **changes):
    fields = {
        "site": site,
        "level": "record",
        "unit": "row",
        "status": "stated",
        "spent": 12.345,
        "limit": 40.0,
        "delta": 1e-5,
        "accountant": "rdp",
        "after": tuple(RoundEpsilon(round=n, epsilon=12.0 + n) for n in (101, 102, 103)),
        "rounds_left": 1234,
        "noise": 1.073352,
        "noise_needed": 1.273352,
        "second_campaign_rounds": 1000,
    }
    return BudgetPlan.model_validate(fields | changes)


def plan(*budgets, **changes):
    fields = {
        "campaign": "nightly-excavators",
        "max_rounds": 1200,
        "first_round": 101,
        "rounds": 3,
        "budgets": budgets,
        "ends_first": budgets[0].site if budgets else None,
        "ends_first_level": "record" if budgets else None,
        "worst_site": budgets[0].site if budgets else None,
        "worst_epsilon": 115.0 if budgets else None,
    }
    return CampaignPlan.model_validate(fields | changes)


def shown(table):
    target = io.StringIO()
    Console(file=target, width=80).print(table)
    return target.getvalue()


def test_no_figure_of_the_widest_plan_is_cut_at_eighty_columns():
    whole = budget(level="client", unit="site", accountant="gdp", status="does not hold")

    text = shown(budgets_table(plan(budget(), whole, budget(unit="patient_id"))))

    assert "…" not in text
    for figure in ("12.35", "115.00", "40", "1234", "1.273", "1000", "gdp"):
        assert figure in text
    assert "rows of a site: noise 1.073, delta 1e-05" in text


def test_sites_that_agree_share_a_column_and_others_have_their_own():
    same = [budget(name) for name in ("a", "b", "c")]
    other = budget("d", after=(RoundEpsilon(round=101, epsilon=1.0),) * 3)

    text = shown(schedule_table(plan(*same, other)))

    assert "3 sites" in text
    assert " d " in text
    assert "red: the site will refuse" not in text


def test_infinite_epsilon_is_shown_as_such():
    endless = budget(after=(RoundEpsilon(round=101), RoundEpsilon(round=102)), refused_in=101)

    text = shown(schedule_table(plan(endless)))

    assert text.count("inf") == 2
    assert "red: the site will refuse" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "ends first: 1234 rounds left at noise 1.07335, enough for the 3 planned"),
        ({"rounds_left": 1, "refused_in": 102}, "refuses round 102; noise 1.27335 would fit all 3"),
        (
            {"rounds_left": 0, "refused_in": 101, "noise_needed": None},
            "refuses round 101; no noise fits all that are planned",
        ),
    ],
    ids=["enough", "noise", "none"],
)
def test_who_ends_first_is_said_in_words(changes, said):
    assert any(said in line for line in sentences(plan(budget(**changes)), has_store=True))


def test_missing_store_and_missing_statements_are_said_apart():
    silent = budget(status="not stated", spent=None, rounds_left=None)

    alone = sentences(plan(silent), has_store=False)
    beside = sentences(plan(silent), has_store=True)

    assert any("no store is reached" in line for line in alone)
    assert not any("no store is reached" in line for line in beside)
    assert any("nothing is known of what was spent" in line for line in beside)


def test_price_of_choosing_a_run_is_beside_that_of_all_runs():
    # tests/vectors, case tuning-poisson-10: Papernot and Steinke 2022.
    cost = TuningCost(mean_runs=10, delta=1e-5, one_run=2.56, best_of_random=5.01, all_runs=7.65)

    (*_, said) = sentences(plan(budget()), has_store=True, tuning=cost)

    for figure in ("5.01", "7.65", "2.56", "Poisson, mean 10"):
        assert figure in said


def test_campaign_without_guarantee_says_why_and_nothing_else():
    lines = sentences(plan(reason="public rows, nothing to protect"), has_store=True)

    assert lines == [
        "no guarantee, nothing is charged against a budget: public rows, nothing to protect"
    ]
