"""SOUNDNESS, what leaves a site: rules 4, 17, 20 and 22, as far as rows and the gate go."""

import json

import pandas as pd
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import usable_rows
from fl_core.data.rows import dataset_version, rows_of, take_rows, words_hash
from fl_core.errors import CampaignError
from fl_core.updates.records import GateReport
from flows.demo_data import LABELS, write_demo, write_tuning
from tasks.row_gate import StoredVerdict, cached_gate, run_gate
from tasks.site_rows import read_rows
from tasks.suite_files import load_suite

TASK = TaskSpec(labels=LABELS)
ANSWERS = TaskSpec(kind="causal_lm", text="text", target="label")

MESSY = [
    ("oil leak", "Engine", "2004-07-01"),
    ("oil leak", "Engine", "2004-07-01"),
    ("OIL LEAK ", "Engine", "2004-07-01"),
    ("oil leak", "180", "2004-07-01"),
    ("", "Engine", "2004-07-01"),
    (None, "Engine", "2004-07-01"),
    (180, "Engine", "2004-07-01"),
    ("new tooth", "Bucket", "2004-02-31"),
    ("new tooth", "Bucket", "2004-02-28"),
]


def messy(n_clean=22):
    table = [*MESSY, *((f"swap bucket {n}", "Bucket", "2005-03-20") for n in range(n_clean))]
    return rows_of(pd.DataFrame(table, columns=["text", "label", "date"], dtype=object), "rows")


def test_rule_4_a_row_is_kept_or_dropped_whatever_the_other_rows_are():
    rows, suite = messy(), load_suite("work-orders")
    whole = run_gate(rows, suite, task=TASK)
    kept = set(whole.kept.tolist())

    for gone in range(len(MESSY)):
        others = [n for n in range(len(rows)) if n != gone]
        verdict = run_gate(take_rows(rows, others), suite, task=TASK)

        assert {others[n] for n in verdict.kept} == kept - {gone}


def test_rule_4_duplicates_are_never_dropped():
    verdict = run_gate(messy(), load_suite("work-orders"), task=TASK)

    assert {0, 1, 2} <= set(verdict.kept.tolist())
    assert verdict.warnings == ("no_duplicates",)


@pytest.mark.parametrize("task", [TASK, ANSWERS], ids=["classification", "causal_lm"])
def test_rule_4_encoding_leaves_a_row_out_whatever_the_other_rows_are(task):
    rows = messy()
    whole = usable_rows(rows, task).tolist()

    alone = [usable_rows(take_rows(rows, [n]), task).tolist() for n in range(len(rows))]

    assert [one for (one,) in alone] == whole
    assert not all(whole)


@pytest.mark.parametrize(
    "kind",
    ["expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique"],
)
def test_rule_4_suite_that_would_drop_duplicates_is_refused(tmp_path, kind):
    rule = {
        "type": kind,
        "kwargs": {"column": "$text"},
        "severity": "critical",
        "meta": {"rule": "distinct", "scope": "row"},
    }
    file = {"name": "own", "columns": ["$text"], "minimum_rows": 1, "expectations": [rule]}
    (tmp_path / "own.json").write_text(json.dumps(file))

    with pytest.raises(CampaignError, match="does not look at one row alone"):
        load_suite("own", folder=tmp_path)


def test_rule_17_the_report_has_a_hash_a_bit_and_names_and_no_more():
    assert set(GateReport.model_fields) == {"suite_sha256", "passed", "failed"}

    suite = load_suite("work-orders")
    public = {rule.name for rule in suite.rules}
    public |= {"required_columns", "column_types", "minimum_rows"}
    tables = [messy(), messy(0), take_rows(messy(), []), rows_of(pd.DataFrame(), "rows")]

    for table in tables:
        report = run_gate(table, suite, task=TASK).report
        assert report.suite_sha256 == suite.sha256
        assert set(report.failed) <= public


def test_rule_17_report_is_the_same_for_any_number_of_rows_and_of_dirt():
    suite = load_suite("work-orders")
    clean = take_rows(messy(), list(range(len(MESSY), len(MESSY) + 20)))

    reports = {
        to_bytes(run_gate(table, suite, task=TASK).report) for table in (clean, messy(), messy(90))
    }

    assert len(reports) == 1


def test_rule_20_a_stored_verdict_is_read_back_and_never_judged_again():
    rows, suite, store = messy(), load_suite("work-orders"), MemoryStore()
    # A verdict that no judging of these rows would give.
    planted = StoredVerdict(
        report=GateReport(suite_sha256=suite.sha256, passed=False, failed=("planted",)),
        kept=(),
        quarantine={},
        warnings=(),
    )
    key = keys.gate_verdict(dataset_version(rows), suite.sha256, document_sha256(TASK))
    store.put_once(key, to_bytes(planted))

    found = cached_gate(rows, suite, task=TASK, store=store)

    assert found.report.failed == ("planted",)


def test_rule_20_the_first_verdict_on_rows_is_the_last():
    rows, suite, store = messy(0), load_suite("work-orders"), MemoryStore()

    first = cached_gate(rows, suite, task=TASK, store=store)
    second = cached_gate(messy(0), suite, task=TASK, store=store)

    assert to_bytes(first.report) == to_bytes(second.report)
    assert len(store.list("gates/")) == 1


@pytest.mark.parametrize("write", [write_demo, write_tuning], ids=["demo", "tuning"])
def test_rule_22_no_words_of_the_public_holdout_are_at_a_site(tmp_path, write):
    data = write(tmp_path)
    held_out = {words_hash(text) for text in read_rows(data.holdout).frame["text"]}

    assert held_out
    for path in data.sites.values():
        at_site = {words_hash(text) for text in read_rows(path).frame["text"]}
        assert held_out.isdisjoint(at_site)
