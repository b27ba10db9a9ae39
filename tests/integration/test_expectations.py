"""The gate with the real Great Expectations, on rows that are as bad as rows can be."""

import json
import logging
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.specs import TaskSpec
from fl_core.data.rows import dataset_version, rows_of
from fl_core.updates.manifest import Declined
from flows.demo_data import LABELS, write_demo
from tasks.expectations import check_rows
from tasks.row_gate import cached_gate, run_gate, write_quarantine
from tasks.site_rows import read_rows
from tasks.suite_files import load_suite, resolve_expectations

CANARY = "CANARY-5e1f"
TASK = TaskSpec(labels=LABELS)
INSTRUCTIONS = Path(__file__).parent.parent / "data" / "instructions"

GOOD = ("oil leak at the boom", "Hydraulic System", "2004-07-01")


def rows(*bad, good=25):
    """Return ``good`` clean rows with the bad ones behind them."""
    clean = [(f"{GOOD[0]} {n}", *GOOD[1:]) for n in range(good)]
    columns = zip(*clean, *bad, strict=True) if clean or bad else ([], [], [])
    names = ("text", "label", "date")
    return rows_of(
        pd.DataFrame(
            {k: pd.Series(list(c), dtype=object) for k, c in zip(names, columns, strict=True)}
        ),
        "rows.csv",
    )


def judged(given, **changes):
    return run_gate(given, load_suite("work-orders"), task=TASK.model_copy(update=changes))


BAD_ROWS = {
    "no text": ((None, *GOOD[1:]), ("text_present",)),
    "not a number": ((float("nan"), *GOOD[1:]), ("text_present",)),
    "empty text": (("", *GOOD[1:]), ("text_length", "text_not_blank")),
    "blank text": (("      ", *GOOD[1:]), ("text_not_blank",)),
    "punctuation": ((" ... --", *GOOD[1:]), ("text_not_blank",)),
    "short text": (("ab", *GOOD[1:]), ("text_length",)),
    "long text": (("oil " * 501, *GOOD[1:]), ("text_length",)),
    "number for text": ((180, *GOOD[1:]), ("text_cells",)),
    "list for text": (([CANARY], *GOOD[1:]), ("text_cells",)),
    "bytes for text": ((CANARY.encode(), *GOOD[1:]), ("text_cells",)),
    "lone surrogate": ((CANARY + "\ud800", *GOOD[1:]), ("text_cells",)),
    "no label": ((GOOD[0], None, GOOD[2]), ("label_present",)),
    "dirt for label": ((GOOD[0], "180", GOOD[2]), ("label_known",)),
    "canary for label": ((GOOD[0], CANARY, GOOD[2]), ("label_known",)),
    "other case of label": ((GOOD[0], "engine", GOOD[2]), ("label_known",)),
    "number for label": ((GOOD[0], 180, GOOD[2]), ("text_cells",)),
    "no date": ((*GOOD[:2], None), ("date_present",)),
    "no such day": ((*GOOD[:2], "2004-02-31"), ("date_in_bounds",)),
    "leap day": ((*GOOD[:2], "2004-02-29"), None),
    "short month": ((*GOOD[:2], "2004-2-1"), ("date_in_bounds",)),
    "other digits": ((*GOOD[:2], "\u0662\u0660\u0660\u0664-07-01"), ("date_in_bounds",)),
    "week date": ((*GOOD[:2], "2004-W27-4"), ("date_in_bounds",)),
    "line break": ((*GOOD[:2], "2004-07-01\n"), ("date_in_bounds",)),
    "day before the bounds": ((*GOOD[:2], "1979-12-31"), ("date_in_bounds",)),
    "first day": ((*GOOD[:2], "1980-01-01"), None),
    "last day": ((*GOOD[:2], "2049-12-31"), None),
    "day after the bounds": ((*GOOD[:2], "2050-01-01"), ("date_in_bounds",)),
    "everything": (
        ("", "180", "never"),
        ("date_in_bounds", "label_known", "text_length", "text_not_blank"),
    ),
}


@pytest.mark.parametrize(("bad", "reasons"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row_is_quarantined_with_its_reasons_and_nothing_is_told(bad, reasons):
    verdict = judged(rows(bad))

    assert verdict.quarantine == ({} if reasons is None else {25: reasons})
    assert verdict.kept.tolist() == list(range(25 if reasons else 26))
    assert to_bytes(verdict.report) == to_bytes(judged(rows()).report)


def test_positions_hold_when_rows_that_are_no_text_are_set_aside_first():
    bad = [(180, *GOOD[1:]), (GOOD[0], "180", GOOD[2]), (["x"], *GOOD[1:]), (*GOOD[:2], "never")]

    verdict = judged(rows(*bad))

    assert verdict.quarantine == {
        25: ("text_cells",),
        26: ("label_known",),
        27: ("text_cells",),
        28: ("date_in_bounds",),
    }


def frame_without(column):
    return rows_of(rows().frame.drop(columns=[column]), "rows.csv")


def frame_with(column, values):
    return rows_of(rows().frame.assign(**{column: values}), "rows.csv")


TABLES = {
    "missing column": (frame_without("date"), ("required_columns",)),
    "missing label": (frame_without("label"), ("required_columns",)),
    "no columns at all": (rows_of(pd.DataFrame(), "x"), ("required_columns",)),
    "empty frame": (rows(good=0), ("minimum_rows",)),
    "too few rows": (rows(good=19), ("minimum_rows",)),
    "no row is left": (rows(*[(1, 2, 3)] * 30, good=0), ("minimum_rows",)),
    "too few are left": (rows(*[(None, *GOOD[1:])] * 30, good=19), ("minimum_rows",)),
    "column of numbers": (frame_with("label", range(25)), ("column_types",)),
    "column of times": (frame_with("date", pd.Timestamp("2004-07-01")), ("column_types",)),
}


@pytest.mark.parametrize(("table", "failed"), TABLES.values(), ids=TABLES.keys())
def test_table_that_cannot_be_used_makes_the_site_decline_by_rule_name(table, failed):
    verdict = judged(table)

    assert not verdict.report.passed
    assert verdict.report.failed == failed
    assert verdict.kept.tolist() == []


@pytest.mark.parametrize("dtype", ["str", "string", "category", object], ids=str)
def test_text_columns_of_every_kind_are_judged(dtype):
    given = rows((GOOD[0], "180", GOOD[2]))
    typed = rows_of(given.frame.astype({"text": dtype, "date": dtype}), "rows.csv")

    verdict = judged(typed)

    assert verdict.report.passed
    assert verdict.quarantine == {25: ("label_known",)}


def test_duplicates_warn_and_stay():
    given = rows(GOOD, GOOD)

    verdict = judged(given)

    assert verdict.warnings == ("no_duplicates",)
    assert verdict.kept.tolist() == list(range(27))


def test_verdict_has_the_same_bytes_every_time():
    given = rows((GOOD[0], "180", GOOD[2]))

    reports = {to_bytes(judged(given).report) for _ in range(3)}

    assert len(reports) == 1


MEAN = {
    "type": "expect_column_mean_to_be_between",
    "kwargs": {"column": "$text", "min_value": 0},
    "severity": "critical",
    "meta": {"rule": "text_mean", "scope": "set"},
}
LARGEST = {
    "type": "expect_column_max_to_be_between",
    "kwargs": {"column": "$label", "max_value": "B"},
    "severity": "critical",
    "meta": {"rule": "label_max", "scope": "set"},
}
PATTERN = {
    "type": "expect_column_values_to_match_regex",
    "kwargs": {"column": "$text", "regex": "("},
    "severity": "critical",
    "meta": {"rule": "text_pattern", "scope": "row"},
}
UNKNOWN = {
    "type": "expect_column_values_to_be_charming",
    "kwargs": {"column": "$text"},
    "severity": "critical",
    "meta": {"rule": "charming", "scope": "set"},
}
LARGEST["kwargs"]["column"] = "$target"


def own_suite(folder, *expectations):
    shipped = json.loads(json.dumps(load_suite("labelled-texts").file.model_dump(mode="json")))
    shipped["name"] = "own"
    shipped["expectations"] += expectations
    (folder / "own.json").write_text(json.dumps(shipped))
    return load_suite("own", folder=folder)


@pytest.mark.parametrize(
    ("expectation", "broken"),
    [
        (MEAN, "text_mean"),
        (LARGEST, "label_max"),
        (PATTERN, "text_pattern"),
        (UNKNOWN, "charming"),
    ],
    ids=["crashes on a cell", "takes all down", "crashes on every cell", "library drops it"],
)
@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_nothing_of_a_row_leaves_when_checks_crash_or_quote_it(  # noqa: PLR0917 - pytest passes fixtures
    tmp_path, caplog, capfd, expectation, broken, severity
):
    suite = own_suite(tmp_path, expectation | {"severity": severity})
    bad = [(f"{CANARY} text {n}", f"{CANARY} label", f"{CANARY} date") for n in range(5)]
    bad += [(None, None, None)]
    caplog.set_level(logging.DEBUG)

    verdict = run_gate(rows(*bad), suite, task=TASK)

    critical = severity == "critical"
    assert verdict.report.failed == ((broken,) if critical else ())
    assert (broken in verdict.warnings) is not critical
    declined = Declined(
        campaign_digest="0" * 64, round=1, site="a", reason="gate", rules=verdict.report.failed
    )
    output = capfd.readouterr()
    left = [to_bytes(verdict.report).decode(), to_bytes(declined).decode()]
    seen = [*left, caplog.text, output.out, output.err, *map(str, verdict.warnings)]
    assert not any(CANARY in text for text in seen)


def test_results_without_our_projection_would_quote_the_rows():
    """The check above can fail: what the library itself returns does hold the canary."""
    from tasks.expectations import _validate

    frame = rows((f"{CANARY} text", *GOOD[1:]), good=0).frame
    mean = MEAN | {"kwargs": {"column": "text", "min_value": 0}}

    assert CANARY in str(_validate(frame, [mean]))


def test_a_lost_rule_is_no_pass(tmp_path):
    suite = own_suite(tmp_path)
    expectations = resolve_expectations(suite, TASK)[:-2]

    results = check_rows(rows().frame, expectations)

    assert [r.name for r in results] == [e["meta"]["rule"] for e in expectations]


def test_the_librarys_log_works_again_after_the_gate():
    library = logging.getLogger("great_expectations")
    before = list(library.handlers), library.propagate

    judged(rows())

    assert (library.handlers, library.propagate) == before


def test_verdict_is_read_back_whole_from_the_sites_store():
    store, suite = MemoryStore(), load_suite("work-orders")
    given = rows((GOOD[0], "180", GOOD[2]), GOOD, GOOD)

    first = cached_gate(given, suite, task=TASK, store=store)
    again = cached_gate(given, suite, task=TASK, store=store)

    assert np.array_equal(first.kept, again.kept)
    assert (first.report, first.quarantine, first.warnings) == (
        again.report,
        again.quarantine,
        again.warnings,
    )
    assert len(store.list("gates/")) == 1


def test_other_rows_another_suite_and_another_task_are_judged_anew():
    store, suite = MemoryStore(), load_suite("work-orders")
    few = TASK.model_copy(update={"labels": ("Engine", "Bucket")})

    cached_gate(rows(), suite, task=TASK, store=store)
    cached_gate(rows(GOOD), suite, task=TASK, store=store)
    cached_gate(rows(), load_suite("labelled-texts"), task=TASK, store=store)
    refused = cached_gate(rows(), suite, task=few, store=store)

    assert len(store.list("gates/")) == 4
    assert refused.report.failed == ("minimum_rows",)


def test_quarantine_is_a_private_file_with_reasons(tmp_path):
    given = rows((CANARY + "\ud800", *GOOD[1:]), (GOOD[0], "180", GOOD[2]))
    verdict = judged(given)

    path = write_quarantine(tmp_path / "quarantine", given, verdict)
    again = write_quarantine(tmp_path / "quarantine", given, verdict)

    assert path == again
    assert path.name == f"quarantine-{dataset_version(given)[:12]}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Its size would tell others how many rows were kept out.
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["row"], line["rules"]) for line in lines] == [
        (26, ["text_cells"]),
        (27, ["label_known"]),
    ]
    assert lines[1]["cells"] == {"text": GOOD[0], "label": "180", "date": GOOD[2]}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_file_is_written_when_every_row_is_clean(tmp_path):
    given = rows()

    assert write_quarantine(tmp_path / "quarantine", given, judged(given)) is None
    assert not (tmp_path / "quarantine").exists()


def test_demo_sites_pass_and_the_one_dirty_row_is_quarantined(tmp_path):
    demo = write_demo(tmp_path)

    found = {site: judged(read_rows(path)) for site, path in demo.sites.items()}

    assert all(verdict.report.passed for verdict in found.values())
    dirty = {site: list(v.quarantine.values()) for site, v in found.items() if v.quarantine}
    assert dirty == {"site-b": [("label_known",)]}


@pytest.mark.parametrize("name", ["site-a", "site-b", "held-out"])
def test_instruction_pairs_pass_their_suite_without_a_warning(name):
    task = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=96)
    given = read_rows(INSTRUCTIONS / f"{name}.jsonl")

    verdict = run_gate(given, load_suite("instructions"), task=task)

    assert verdict.report.passed
    assert len(verdict.kept) == len(given)
    assert verdict.warnings == ()
