"""Rounds and budgets as text: what people see at the terminal and in Prefect."""

from datetime import timedelta

import pytest

from fl_core.rounds.documents import Outcome, SiteAnswer
from fl_core.rounds.status import CampaignStatus, RoundStatus
from fl_core.updates.records import BudgetStatement, Evaluation, Spending
from tasks.round_table import budget_rows, round_row, round_rows
from tests.worlds import NOW

HASH = "b" * 64
COHORT = ("a", "b", "c")
OUTCOME = Outcome(
    round=2,
    status="released",
    base_hash=HASH,
    result_hash=HASH,
    contributors=("a",),
    opened=NOW,
    closed=NOW + timedelta(seconds=12.34),
)
ANSWERS = {
    "a": SiteAnswer(status="accepted", payload_bytes=1_600),
    "b": SiteAnswer(status="declined", reason="gate", rules=("minimum_rows",)),
    "c": SiteAnswer(status="missing"),
}
SCORES = Evaluation(adapter_sha256=HASH, holdout_sha256=HASH, examples=10, accuracy=0.8764)


def budget(site, epsilon, *, limit=8.0):
    return BudgetStatement(
        site=site,
        campaign_digest=HASH,
        round=2,
        dataset=f"{site}-1",
        unit="row",
        epsilon=epsilon,
        epsilon_limit=limit,
        delta=1e-5,
        accountant="pld",
        rounds_left=3,
        ledger_seq=5,
        ledger_head_sha256=HASH,
    )


def test_closed_round_shows_figures_and_who_was_left_out():
    status = RoundStatus(
        round=2,
        cohort=COHORT,
        outcome=OUTCOME,
        answers=ANSWERS,
        evaluation=SCORES,
        budgets={"a": budget("a", 4.256), "b": budget("b", 2.0)},
        seconds=12.34,
        bytes_up=1_600,
        bytes_down=29_700,
    )

    assert round_row(status) == {
        "round": "2",
        "outcome": "released",
        "accuracy": "0.876",
        "macro F1": "-",
        "worst epsilon": "4.26",
        "kB up": "2",
        "kB down": "30",
        "seconds": "12.3",
        "sites": "1 of 3 accepted; b: declined gate (minimum_rows); c: missing",
    }


@pytest.mark.parametrize(
    ("answered", "said"),
    [((), "0 of 3 have answered"), (("b", "c"), "2 of 3 have answered: b, c")],
    ids=["nobody", "two"],
)
def test_open_round_shows_who_has_answered(answered, said):
    row = round_row(RoundStatus(round=3, cohort=COHORT, answered=answered))

    assert (row["outcome"], row["accuracy"], row["seconds"]) == ("open", "-", "-")
    assert row["sites"] == said


def test_latest_budget_of_a_site_counts_and_none_is_left_past_the_limit():
    rounds = (
        RoundStatus(round=1, budgets={"b": budget("b", 1.0), "a": budget("a", 2.0)}),
        RoundStatus(round=2, budgets={"b": budget("b", 8.5)}),
    )
    status = CampaignStatus(campaign_id="tiny", digest=HASH, max_rounds=2, rounds=rounds)

    rows = budget_rows(status)

    assert [(r["site"], r["epsilon spent"], r["left"]) for r in rows] == [
        ("a", "2.00", "6.00"),
        ("b", "8.50", "0.00"),
    ]


def whole(epsilon):
    shared = set(Spending.model_fields)
    return Spending(**budget("x", epsilon).model_dump(include=shared))


def test_whole_sites_have_a_column_in_every_row_once_a_round_states_them():
    own = budget("a", 2.0).model_copy(update={"client": whole(1.5)})
    local = RoundStatus(round=1, budgets={"a": own, "b": budget("b", 2.0)})
    central = RoundStatus(round=2, federation=budget("federation", 3.25))
    bare = RoundStatus(round=3)

    rows = round_rows((local, central, bare))

    assert [row["site epsilon"] for row in rows] == ["1.50", "3.25", "-"]
    assert len({tuple(row) for row in rows}) == 1
    assert "site epsilon" not in round_rows((bare,))[0]


def test_budgets_of_whole_sites_stand_beside_those_of_their_rows():
    own = budget("a", 2.0).model_copy(update={"client": whole(1.5)})
    rounds = (
        RoundStatus(round=1, budgets={"a": own}, federation=budget("federation", 3.0)),
        RoundStatus(round=2, budgets={"a": own}, federation=budget("federation", 4.0)),
    )
    status = CampaignStatus(campaign_id="tiny", digest=HASH, max_rounds=2, rounds=rounds)

    rows = budget_rows(status)

    assert [(r["site"], r["epsilon spent"]) for r in rows] == [
        ("a", "2.00"),
        ("a as a whole", "1.50"),
        ("any site as a whole", "4.00"),
    ]
