"""What every suite that comes with fedloom keeps, asked of each without being named here."""

import pandas as pd
import pytest

from fl_core.artifacts.documents import to_bytes
from fl_core.campaign.specs import TaskSpec
from fl_core.data.rows import rows_of
from tasks.row_gate import run_gate
from tasks.suite_files import load_suite, required_columns, suite_names

CANARY = "CANARY-77c0"
CLASSES = TaskSpec(labels=("one", "two"))
ANSWERS = TaskSpec(kind="causal_lm", text="prompt", target="answer")


def task_of(suite):
    asks_for_labels = any("$labels" in e.kwargs.values() for e in suite.file.expectations)
    return CLASSES if asks_for_labels else ANSWERS


def frame_of(columns, *, n_rows):
    return pd.DataFrame({c: pd.Series([CANARY] * n_rows, dtype=object) for c in columns})


@pytest.fixture(params=suite_names())
def suite(request):
    return load_suite(request.param)


def test_missing_column_is_a_report_by_name(suite):
    first, *others = required_columns(suite, task_of(suite))
    rows = rows_of(frame_of(others, n_rows=30), "rows.csv")

    verdict = run_gate(rows, suite, task=task_of(suite))

    assert not verdict.report.passed
    assert verdict.report.failed == ("required_columns",)
    assert first not in to_bytes(verdict.report).decode()


def test_column_of_the_unit_is_required_beside_the_suites_own(suite):
    columns = required_columns(suite, task_of(suite))
    rows = rows_of(frame_of(columns, n_rows=30), "rows.csv")

    verdict = run_gate(rows, suite, task=task_of(suite), unit="patient_id")

    assert verdict.report.failed == ("required_columns",)
    assert required_columns(suite, task_of(suite), unit="patient_id") == (*columns, "patient_id")
    assert required_columns(suite, task_of(suite), unit=columns[0]) == columns


def test_empty_table_is_a_report_and_not_a_crash(suite):
    columns = required_columns(suite, task_of(suite))

    verdict = run_gate(rows_of(frame_of(columns, n_rows=0), "rows.csv"), suite, task=task_of(suite))

    assert not verdict.report.passed
    assert len(verdict.kept) == 0


def test_report_holds_hash_and_rule_names_only(suite):
    columns = required_columns(suite, task_of(suite))
    rules = {rule.name for rule in suite.rules} | {"minimum_rows"}

    verdict = run_gate(
        rows_of(frame_of(columns, n_rows=30), "rows.csv"), suite, task=task_of(suite)
    )

    assert CANARY not in to_bytes(verdict.report).decode()
    assert set(verdict.report.failed) <= rules
    assert verdict.report.suite_sha256 == suite.sha256
