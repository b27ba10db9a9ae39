"""What a round says in MLflow, without a server."""

import base64
import json
import math
import zlib
from dataclasses import replace

import pytest
from round_logs import (
    NO_PRIVACY,
    make_campaign,
    released,
    skipped,
    statements,
)

from fl_core.campaign.campaign import Campaign
from tasks.tracking_client import chart_url, keep_one
from tasks.tracking_facts import (
    RoundLog,
    campaign_params,
    frontier_step,
    guarantee,
    joined,
    outcome_tags,
    round_metrics,
    summary,
    version_tags,
)
from tasks.tracking_view import view_tag


@pytest.fixture
def campaign() -> Campaign:
    return make_campaign("facts")


@pytest.fixture
def log(campaign: Campaign) -> RoundLog:
    return released(campaign)


def test_worst_site_is_the_one_with_the_largest_epsilon(campaign, log):
    budgets = statements(campaign, {"site-a": 1.0, "site-b": 7.93, "site-c": 2.0})
    budgets["site-c"] = budgets["site-c"].model_copy(update={"epsilon_limit": 3})

    metrics = round_metrics(replace(log, budgets=budgets))

    # Limits are 11, 11 and 3, so 10, 3.07 and 1 are left.
    assert metrics["dp/epsilon"] == 7.93
    assert metrics["dp/epsilon_left"] == 1
    assert metrics["site/site-a/epsilon"] == 1.0


def test_private_campaign_without_any_statement_claims_no_epsilon(log):
    silent = replace(log, budgets={})

    metrics = round_metrics(silent)

    assert metrics["dp/enabled"] == 1
    assert "dp/epsilon" not in metrics
    assert frontier_step(silent) is None
    assert "epsilon not stated by any site" in summary(silent)
    assert "epsilon" not in version_tags(silent, parent_version=None)


def test_no_metric_is_infinite_without_privacy():
    log = released(make_campaign("open", privacy=NO_PRIVACY))

    metrics = round_metrics(log)

    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["dp/enabled"] == 0
    assert frontier_step(log) is None


def test_release_whose_loss_is_not_finite_is_logged_without_it(log):
    diverged = replace(log, evaluation=log.evaluation.model_copy(update={"loss": None}))

    metrics = round_metrics(diverged)

    assert "eval/loss" not in metrics
    assert metrics["eval/accuracy"] == log.evaluation.accuracy


def test_statement_of_a_site_does_not_make_a_campaign_without_privacy_private(campaign):
    # A site may have spent on other campaigns over the same data.
    log = released(make_campaign("open", privacy=NO_PRIVACY))
    spent = replace(log, budgets=statements(campaign, {"site-a": 3.0}))

    assert "dp/epsilon" not in round_metrics(spent)
    assert "no privacy guarantee" in summary(spent)


def test_summary_is_one_line_with_quality_and_epsilon(log):
    assert summary(log) == (
        "Round 1: accuracy 0.610, epsilon 1.50 at delta 1e-05 (worst site), macro-F1 0.410"
    )


def test_long_reason_is_cut_to_what_a_tag_holds(campaign):
    log = skipped(campaign)
    outcome = log.outcome.model_copy(update={"reason": "x" * 9000})

    tags = outcome_tags(replace(log, outcome=outcome))

    assert max(map(len, tags.values())) <= 8000


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["north"], "north"),
        (["north", "south"], "north, south"),
    ],
    ids=["none", "one", "two"],
)
def test_names_are_joined_in_order(names, expected):
    assert joined(names) == expected


def test_more_names_than_a_tag_holds_are_counted():
    names = [f"site-{n:04d}" for n in range(1000)]

    line = joined(names)

    shown, _, rest = line.rpartition(" and ")
    assert len(line) < 6000
    assert len(shown.split(", ")) + int(rest.removesuffix(" more")) == 1000


def test_guarantee_names_level_unit_limit_and_neighbours(campaign):
    assert guarantee(campaign) == (
        "record level: epsilon <= 8 at delta 1e-05, unit row, add/remove, worst site"
    )


def test_params_of_a_campaign_do_not_change_with_its_rounds(campaign):
    params = campaign_params(campaign)

    assert params["privacy.noise_multiplier"] == "0.8"
    assert params["sites"] == "site-a, site-b, site-c"
    assert all(isinstance(value, str) for value in params.values())


def test_first_version_has_no_parent(log):
    assert version_tags(log, parent_version=None)["parent_version"] == "none"


def test_doubles_are_dropped_and_always_the_same_one_is_kept():
    dropped: list[int] = []

    kept = [keep_one(found, order=int, drop=dropped.append) for found in ([3, 1, 2], [1, 3], [])]

    assert kept == [1, 1, None]
    assert dropped == [2, 3, 3]


def test_chart_link_survives_a_slash_at_the_end_of_the_address():
    assert chart_url("http://host:5000/", "7").startswith("http://host:5000/#/experiments/7/runs?")


def test_saved_view_draws_quality_against_epsilon_first():
    stored = json.loads(view_tag(created_ms=1788256800000))

    kind, _, packed = stored["state"].partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))

    first = state["compareRunCharts"][0]
    assert kind == "deflate"
    assert (first["metricKey"], first["selectedXAxisMetricKey"]) == ("eval/accuracy", "dp/epsilon")
    assert first["metricSectionId"] == state["compareRunSections"][0]["uuid"]
    assert (
        len(json.dumps(stored)) < 20000
    )  # mlflow 3.17 holds 20000 characters in an experiment tag


CLIENT_DP = {
    "client": {
        "epsilon": 8,
        "delta": 1e-2,
        "clip_norm": 0.5,
        "noise_multiplier": 1.25,
        "mechanism": "gaussian",
    }
}


def test_whole_sites_are_logged_under_the_coordinators_noise():
    campaign = make_campaign("whole", privacy=CLIENT_DP)
    spent = statements(campaign, {"federation": 2.5})["federation"]

    log = replace(released(campaign), budgets={}, federation=spent)

    metrics, tags = round_metrics(log), version_tags(log, parent_version=None)
    assert metrics["dp/epsilon_client_zero_out"] == 2.5
    assert metrics["dp/epsilon_client_left"] == 8.5
    assert "dp/epsilon" not in metrics
    assert (tags["epsilon_client"], tags["delta_client"]) == ("2.5", "1e-05")
    assert "epsilon 2.50 at delta 1e-05 (whole site)" in summary(log)
    assert campaign_params(campaign)["privacy.client.mechanism"] == "gaussian"


def test_worst_whole_site_counts_where_the_sites_add_the_noise(log):
    budgets = dict(log.budgets)
    for site, epsilon in (("site-a", 1.0), ("site-b", 3.0)):
        whole = budgets[site].model_copy(update={"epsilon": epsilon})
        budgets[site] = budgets[site].model_copy(update={"client": whole})

    metrics = round_metrics(replace(log, budgets=budgets))

    assert metrics["dp/epsilon_client_zero_out"] == 3.0
    assert metrics["dp/epsilon"] == 1.5
