"""Whatever a site's rows are, the gate gives a verdict and what it keeps can be trained on."""

import json

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import usable_rows
from fl_core.data.rows import dataset_version, rows_of, take_rows
from fl_core.data.units import bounded_rows, has_unit
from tasks.row_gate import run_gate
from tasks.site_rows import read_rows
from tasks.suite_files import load_suite

TASK = TaskSpec(labels=("Engine", "Bucket"))
SUITE = load_suite("work-orders")

ANY_TEXT = st.text(st.characters(codec=None), max_size=12)
CELL = st.one_of(
    st.none(),
    ANY_TEXT,
    st.integers(),
    st.floats(),
    st.binary(max_size=4),
    st.lists(ANY_TEXT, max_size=2),
    st.dictionaries(ANY_TEXT, st.integers(), max_size=2),
    st.booleans(),
)
ROW = st.tuples(
    st.one_of(CELL, st.just("oil leak")),
    st.one_of(CELL, st.sampled_from(TASK.labels)),
    st.one_of(CELL, st.just("2004-07-01"), st.dates().map(str)),
)
CLEAN = [(f"swap bucket {n}", "Bucket", "2004-07-01") for n in range(20)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(table=st.lists(ROW, max_size=8))
def test_gate_judges_any_cells_and_keeps_only_rows_that_can_be_encoded(table):
    frame = pd.DataFrame([*CLEAN, *table], columns=["text", "label", "date"], dtype=object)
    rows = rows_of(frame, "rows")

    verdict = run_gate(rows, SUITE, task=TASK)

    assert verdict.report.passed
    assert sorted([*verdict.kept.tolist(), *verdict.quarantine]) == list(range(len(rows)))
    assert set(range(20)) <= set(verdict.kept.tolist())
    assert usable_rows(take_rows(rows, verdict.kept), TASK).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(table=st.lists(st.tuples(ROW, st.one_of(CELL, st.just("p1"))), max_size=8))
def test_gate_lets_rows_pass_that_say_whose_they_are_whatever_the_others_hold(table):
    cells = [
        *((*row, f"p{n % 3}") for n, row in enumerate(CLEAN)),
        *((*r, who) for r, who in table),
    ]
    frame = pd.DataFrame(cells, columns=["text", "label", "date", "person"], dtype=object)
    rows = rows_of(frame, "rows")

    verdict = run_gate(rows, SUITE, task=TASK, unit="person")

    kept = take_rows(rows, verdict.kept)
    assert verdict.report.passed
    assert has_unit(kept, "person").all()
    # What passes for people is what passes for rows, less the rows that are nobody's.
    as_rows = set(run_gate(rows, SUITE, task=TASK).kept.tolist())
    whose = has_unit(rows, "person")
    assert set(verdict.kept.tolist()) == {n for n in as_rows if whose[n]}
    taken = bounded_rows(kept, unit="person", max_rows=2, key=bytes(32))
    counts = kept.frame["person"].iloc[taken].value_counts()
    assert counts.max() <= 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=6))
def test_json_lines_give_back_every_text(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    rows = read_rows(path)

    assert rows.frame["text"].tolist() == texts
    assert len(dataset_version(rows)) == 64
