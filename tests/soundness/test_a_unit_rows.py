"""SOUNDNESS, rule 3: the unit of the statement is the unit of rows, draws and splits.

What training does with a unit (one gradient, clipped once) is in test_a_units.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CLASSES, tiny_rows
from worlds import campaign_of, policy_of

from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import assemble
from fl_core.campaign.specs import TaskSpec
from fl_core.data.gates import UNIT_ID
from fl_core.data.rows import rows_of
from fl_core.data.units import bounded_rows, encode_units, require_units
from fl_core.errors import PolicyRefused
from fl_core.privacy.policy import require_allowed
from fl_core.training.batches import columns_of
from tasks.row_gate import cached_gate, run_gate
from tasks.suite_files import load_suite
from tests.unit.test_prompts import WordTokenizer

KEY = bytes(range(32))
UNIT = "patient_id"
RECORD = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 0.3,
    "sampling_rate": 0.1,
    "noise_multiplier": 0.8,
    "unit": UNIT,
    "max_rows_per_unit": 3,
}
TASK = TaskSpec(labels=("one", "two"), max_tokens=8)
VISITS = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "cy", " ", "", None]), st.sampled_from("abcde")),
    max_size=24,
)


def people_campaign(**changes):
    return campaign_of(privacy={"record": RECORD}, **changes)


def table(visits):
    cells = [(who, text, "one", n) for n, (who, text) in enumerate(visits)]
    frame = pd.DataFrame(cells, columns=[UNIT, "text", "label", "n"], dtype=object)
    # The number only tells rows apart in the assertions; it is no part of a row's content.
    return rows_of(frame.drop(columns="n"), "rows"), frame["n"].tolist()


def chosen(visits, *, max_rows=3):
    rows, numbers = table(visits)
    return {numbers[p] for p in bounded_rows(rows, unit=UNIT, max_rows=max_rows, key=KEY)}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(visits=VISITS, gone=st.sampled_from(["ann", "bob", "cy"]))
def test_rule_03_removing_one_person_moves_no_row_of_another_in_or_out(visits, gone):
    others = [n for n, (who, _) in enumerate(visits) if who != gone]

    whole = chosen(visits)
    without = {others[n] for n in chosen([visits[n] for n in others])}

    assert without == {n for n in whole if visits[n][0] != gone}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(visits=VISITS, max_rows=st.integers(1, 5))
def test_rule_03_no_person_has_more_rows_than_the_public_bound(visits, max_rows):
    taken = chosen(visits, max_rows=max_rows)

    for who in ("ann", "bob", "cy"):
        there = [n for n, (name, _) in enumerate(visits) if name == who]
        assert len(taken & set(there)) == min(len(there), max_rows)


def test_rule_03_rows_are_drawn_once_and_not_per_round():
    campaign = people_campaign(task={"labels": ("one", "two"), "max_tokens": 8})
    rows, _ = table([("ann", text) for text in "abcdefghij"])

    first = encode_units(rows, campaign, WordTokenizer(), key=KEY)
    again = encode_units(rows, campaign, WordTokenizer(), key=KEY)

    assert len(first) == 3
    np.testing.assert_array_equal(first.input_ids, again.input_ids)


def test_rule_03_encoded_rows_carry_their_unit():
    campaign = people_campaign(task={"labels": ("one", "two"), "max_tokens": 8})
    visits = [("bob", "a"), ("ann", "b"), ("bob", "c"), ("cy", ""), ("ann", "d"), ("bob", "e")]
    rows, _ = table(visits)

    encoded = encode_units(rows, campaign, WordTokenizer(), key=KEY)

    assert len(encoded) == 5
    b1, a1, b2, a2, b3 = encoded.units.tolist()
    assert b1 == b2 == b3 != a1 == a2
    # cy's only row is blank, so no number is left over for a unit without rows.
    assert set(encoded.units.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "task",
    [
        {"labels": ("one", "two"), "max_tokens": 8},
        {"kind": "causal_lm", "text": "text", "target": "label", "max_tokens": 24},
    ],
    ids=["classification", "causal_lm"],
)
def test_rule_03_fifty_rows_of_a_person_are_one_unit_for_training(task):
    campaign = people_campaign(task=task)
    rows, _ = table([*(("ann", f"text {n}") for n in range(50)), ("bob", "text")])

    encoded = encode_units(rows, campaign, WordTokenizer(), key=KEY)
    columns = columns_of(encoded, max_rows_per_unit=RECORD["max_rows_per_unit"])

    assert np.bincount(encoded.units).tolist() == [3, 1]
    assert columns.n_units == encoded.n_units == 2
    assert encode_units(rows, campaign_of(task=task), WordTokenizer(), key=KEY).n_units == 51


def test_rule_03_row_without_an_id_is_quarantined_by_itself_and_nobody_hears_of_it():
    clean = [(f"p{n % 7}", f"some text {n}", "one") for n in range(25)]
    dirty = [(None, "no id", "one"), ("", "no id", "one"), ("  ", "no id", "one")]
    frame = pd.DataFrame([*clean, *dirty], columns=[UNIT, "text", "label"], dtype=object)

    verdict = run_gate(rows_of(frame, "rows"), load_suite("labelled-texts"), task=TASK, unit=UNIT)

    assert verdict.kept.tolist() == list(range(25))
    assert verdict.quarantine == dict.fromkeys((25, 26, 27), (UNIT_ID,))
    assert verdict.report.passed
    assert verdict.report.failed == ()


def test_rule_03_rows_without_the_unit_column_are_declined_by_a_public_rule():
    frame = pd.DataFrame([("text", "one")] * 25, columns=["text", "label"], dtype=object)

    verdict = run_gate(rows_of(frame, "rows"), load_suite("labelled-texts"), task=TASK, unit=UNIT)

    assert verdict.report.failed == ("required_columns",)
    assert len(verdict.kept) == 0


def test_rule_03_a_verdict_on_rows_does_not_stand_for_one_on_people():
    frame = pd.DataFrame(
        [(None, f"text {n}", "one") for n in range(25)],
        columns=[UNIT, "text", "label"],
        dtype=object,
    )
    rows, suite, store = rows_of(frame, "rows"), load_suite("labelled-texts"), MemoryStore()

    as_rows = cached_gate(rows, suite, task=TASK, store=store)
    as_people = cached_gate(rows, suite, task=TASK, store=store, unit=UNIT)

    assert as_rows.report.passed
    assert as_people.report.failed == ("minimum_rows",)


def test_rule_20_the_verdict_on_people_is_judged_once_as_well():
    frame = pd.DataFrame(
        [("p1", f"text {n}", "one") for n in range(25)],
        columns=[UNIT, "text", "label"],
        dtype=object,
    )
    rows, suite, store = rows_of(frame, "rows"), load_suite("labelled-texts"), MemoryStore()

    first = cached_gate(rows, suite, task=TASK, store=store, unit=UNIT)
    again = cached_gate(rows, suite, task=TASK, store=store, unit=UNIT)

    assert len(store.list("gates/")) == 1
    assert first.kept.tolist() == again.kept.tolist() == list(range(25))


@pytest.mark.parametrize(
    "own",
    [{"unit": "row", "max_rows_per_unit": 1}, {"unit": "case_id"}, {"max_rows_per_unit": 2}],
    ids=["row", "another column", "another bound"],
)
def test_rule_03_a_site_that_counts_another_unit_declines(own):
    campaign = people_campaign()
    policy = policy_of(campaign, "a", **({"unit": UNIT, "max_rows_per_unit": 3} | own))

    with pytest.raises(PolicyRefused, match=f"policy field '{'unit' if 'unit' in own else 'max'}"):
        require_allowed(policy, campaign)


def test_rule_03_rows_that_name_no_units_are_not_trained_on_as_if_each_were_one():
    rows = tiny_rows(CLASSES, 4)

    assert require_units(rows, campaign_of()) is rows
    with pytest.raises(ValueError, match="protects 'patient_id' and the rows name no units"):
        require_units(rows, people_campaign())


def test_rule_03_the_event_counts_units_whatever_rows_they_have():
    people, rows = people_campaign(), campaign_of()

    assert assemble(people).noise.event == assemble(rows).noise.event
    assert assemble(people).noise.assumed_sensitivity == RECORD["clip_norm"]
