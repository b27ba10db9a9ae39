"""Whose a row is, and which rows of one person take part."""

import hashlib
import hmac

import numpy as np
import pandas as pd
import pytest

from fl_core.campaign.guarantees import ROW
from fl_core.data.rows import rows_of
from fl_core.data.units import bounded_rows, has_unit, unit_numbers
from fl_core.errors import CampaignError

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
UNIT = "patient_id"


def table(*cells):
    columns = [UNIT, "text"]
    return rows_of(pd.DataFrame(list(cells), columns=columns, dtype=object), "rows")


def visits(**counts):
    """Return so many different rows of each person, in turns."""
    cells = [(who, f"visit {n} of {who}") for who, count in counts.items() for n in range(count)]
    order = np.random.default_rng(0).permutation(len(cells))
    return table(*(cells[i] for i in order))


def texts(rows, positions):
    return set(rows.frame["text"].iloc[positions])


@pytest.mark.parametrize(
    ("cell", "is_there"),
    [
        ("p7", True),
        ("007", True),
        (" p", True),
        ("", False),
        ("  ", False),
        (None, False),
        (7, False),
        ("\ud800", False),
        (["p"], False),
        (float("nan"), False),
    ],
    ids=repr,
)
def test_row_has_a_unit_if_its_cell_is_a_text_that_is_not_blank(cell, is_there):
    assert has_unit(table((cell, "a")), UNIT).tolist() == [is_there]


def test_row_as_unit_needs_no_column():
    assert has_unit(table((None, "a"), (None, "b")), ROW).tolist() == [True, True]
    assert unit_numbers(table((None, "a"), (None, "b")), ROW).tolist() == [0, 1]


def test_ids_are_compared_as_exact_texts():
    numbers = unit_numbers(
        table(("a", "1"), ("A", "2"), ("a ", "3"), ("01", "4"), ("1", "5")), UNIT
    )

    assert len(set(numbers.tolist())) == 5


def test_rows_of_one_unit_have_one_number():
    numbers = unit_numbers(table(("b", "1"), ("a", "2"), ("b", "3")), UNIT).tolist()

    assert numbers[0] == numbers[2] != numbers[1]


def test_row_without_a_unit_has_no_number():
    with pytest.raises(ValueError, match="have no unit"):
        unit_numbers(table(("a", "1"), ("", "2")), UNIT)


def test_missing_column_is_named():
    with pytest.raises(CampaignError, match="no column 'patient_id'"):
        bounded_rows(rows_of(pd.DataFrame({"text": ["a"]}), "rows"), unit=UNIT, max_rows=1, key=KEY)


def test_no_unit_has_more_rows_than_the_bound_and_none_loses_a_row_below_it():
    rows = visits(ann=50, bob=4, cy=1)

    taken = bounded_rows(rows, unit=UNIT, max_rows=4, key=KEY)

    counts = rows.frame[UNIT].iloc[taken].value_counts().to_dict()
    assert counts == {"ann": 4, "bob": 4, "cy": 1}
    assert taken.tolist() == sorted(taken.tolist())


def test_row_with_the_smallest_tag_of_the_key_is_drawn():
    # HMAC-SHA256 over purpose, zero byte, content (by column name) and occurrence, worked out
    # here from the format that the module's docstring and `row_bytes` state.
    def content(who, text):
        cells = ((UNIT, who), ("text", text))
        parts = [part for pair in cells for part in pair]
        return b"".join(b"s" + len(p).to_bytes(8, "big") + p.encode() for p in parts)

    def tag(text):
        message = b"fedloom unit draw\0" + content("ann", text) + (1).to_bytes(8, "big")
        return hmac.new(KEY, message, hashlib.sha256).digest()

    rows = visits(ann=9)
    smallest = min(rows.frame["text"], key=tag)

    taken = bounded_rows(rows, unit=UNIT, max_rows=1, key=KEY)

    assert texts(rows, taken) == {smallest}


def test_draw_is_the_same_for_any_order_of_the_file():
    rows = visits(ann=20, bob=20)
    turned = rows_of(rows.frame.iloc[::-1], "rows")

    taken = bounded_rows(rows, unit=UNIT, max_rows=3, key=KEY)
    taken_turned = bounded_rows(turned, unit=UNIT, max_rows=3, key=KEY)

    assert texts(rows, taken) == texts(turned, taken_turned)


def test_draw_of_another_key_is_another():
    rows = visits(ann=50)

    one = texts(rows, bounded_rows(rows, unit=UNIT, max_rows=5, key=KEY))
    other = texts(rows, bounded_rows(rows, unit=UNIT, max_rows=5, key=OTHER_KEY))

    assert one != other


def test_every_row_of_a_unit_is_drawn_equally_often():
    # 2,000 keys, 1 of 10 rows each: Pearson's statistic over 9 degrees of freedom exceeds 52.3
    # with probability 4e-8 for a uniform draw.
    rows = table(*(("ann", f"visit {n}") for n in range(10)))
    keys = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(2000)]

    drawn = [int(bounded_rows(rows, unit=UNIT, max_rows=1, key=key)[0]) for key in keys]

    counts = np.bincount(drawn, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 52.3


def test_equal_rows_of_one_unit_count_each():
    rows = table(*(("ann", "same") for _ in range(6)))

    assert len(bounded_rows(rows, unit=UNIT, max_rows=4, key=KEY)) == 4


def test_row_as_unit_bounds_nothing():
    rows = visits(ann=5)

    assert bounded_rows(rows, unit=ROW, max_rows=1, key=KEY).tolist() == [0, 1, 2, 3, 4]


def test_rows_without_a_unit_never_take_part():
    rows = table(("ann", "1"), (None, "2"), ("", "3"))

    assert bounded_rows(rows, unit=UNIT, max_rows=9, key=KEY).tolist() == [0]


def test_short_key_is_misuse():
    with pytest.raises(ValueError, match="expected 32"):
        bounded_rows(visits(ann=1), unit=UNIT, max_rows=1, key=b"short")
