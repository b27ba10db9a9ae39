"""Verdicts from the results of rules."""

import numpy as np
import pytest

from fl_core.artifacts.documents import to_bytes
from fl_core.data.gates import MINIMUM_ROWS, RuleResult, RuleSpec, judge, refuse

SUITE = "ab" * 32
ROW = RuleSpec("text_present", "row", "critical")
DATE = RuleSpec("date_valid", "row", "critical")
SET = RuleSpec("label_variety", "set", "critical")
WARN = RuleSpec("no_duplicates", "set", "warning")
WARN_ROW = RuleSpec("short_text", "row", "info")


def verdict(rules, results, *, n_rows=5, minimum_rows=1):
    return judge(rules, results, n_rows=n_rows, minimum_rows=minimum_rows, suite_sha256=SUITE)


def test_rows_that_break_row_rules_are_kept_out_with_all_reasons():
    results = [
        RuleResult("text_present", "failed", (3, 1)),
        RuleResult("date_valid", "failed", (1,)),
    ]

    found = verdict([ROW, DATE], results)

    assert found.kept.tolist() == [0, 2, 4]
    assert found.quarantine == {1: ("date_valid", "text_present"), 3: ("text_present",)}


def test_report_does_not_tell_that_rows_were_kept_out():
    clean = verdict([ROW], [RuleResult("text_present", "passed")])
    dirty = verdict([ROW], [RuleResult("text_present", "failed", (0, 1))])

    assert to_bytes(dirty.report) == to_bytes(clean.report)
    assert dirty.report.passed


@pytest.mark.parametrize(
    ("rules", "results", "failed"),
    [
        ([SET], [RuleResult("label_variety", "failed")], ("label_variety",)),
        ([SET], [RuleResult("label_variety", "crashed")], ("label_variety",)),
        ([ROW], [RuleResult("text_present", "crashed")], ("text_present",)),
        ([ROW, SET], [RuleResult("text_present", "passed")], ("label_variety",)),
        ([ROW], [RuleResult("text_present", "failed")], ("text_present",)),
        ([ROW], [RuleResult("text_present", "passed")] * 2, ("text_present",)),
        (
            [SET, ROW],
            [RuleResult("text_present", "crashed"), RuleResult("label_variety", "failed")],
            ("label_variety", "text_present"),
        ),
    ],
    ids=[
        "set rule broke",
        "set rule crashed",
        "row rule crashed",
        "rule was lost",
        "row rule names no row",
        "rule came twice",
        "two, sorted",
    ],
)
def test_site_declines_with_rule_names_and_keeps_no_row(rules, results, failed):
    found = verdict(rules, results)

    assert not found.report.passed
    assert found.report.failed == failed
    assert found.kept.tolist() == []


@pytest.mark.parametrize("outcome", ["failed", "crashed"])
def test_lesser_rules_warn_and_change_nothing(outcome):
    results = [RuleResult("no_duplicates", outcome), RuleResult("short_text", outcome, (2,))]

    found = verdict([WARN_ROW, WARN], results)

    assert found.report.passed
    assert found.kept.tolist() == [0, 1, 2, 3, 4]
    assert found.warnings == ("no_duplicates", "short_text")


@pytest.mark.parametrize(
    ("n_rows", "minimum", "failing", "passed"),
    [(5, 3, (0, 1), True), (5, 3, (0, 1, 2), False), (0, 1, (), False), (2, 2, (), True)],
    ids=["just enough", "one too few", "empty table", "exactly"],
)
def test_minimum_counts_the_rows_that_are_kept(n_rows, minimum, failing, passed):
    outcome = "failed" if failing else "passed"

    found = verdict(
        [ROW],
        [RuleResult("text_present", outcome, failing)],
        n_rows=n_rows,
        minimum_rows=minimum,
    )

    assert found.report.passed is passed
    assert found.report.failed == (() if passed else (MINIMUM_ROWS,))


def test_order_of_results_changes_nothing():
    results = [
        RuleResult("text_present", "failed", (4, 0)),
        RuleResult("date_valid", "failed", (0,)),
        RuleResult("no_duplicates", "failed"),
    ]

    one = verdict([ROW, DATE, WARN], results)
    other = verdict([WARN, DATE, ROW], results[::-1])

    assert one.quarantine == other.quarantine
    assert np.array_equal(one.kept, other.kept)
    assert to_bytes(one.report) == to_bytes(other.report)


def test_a_table_that_cannot_be_judged_is_refused_whole():
    found = refuse(["required_columns"], suite_sha256=SUITE)

    assert found.report.failed == ("required_columns",)
    assert found.kept.tolist() == []
