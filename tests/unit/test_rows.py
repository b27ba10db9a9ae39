"""Rows, their version, and the public split."""

import numpy as np
import pandas as pd
import pytest

from fl_core.data.rows import (
    dataset_version,
    is_missing,
    is_text,
    require_columns,
    require_rows,
    rows_of,
    take_rows,
    words_hash,
)
from fl_core.errors import CampaignError

# FIPS 180-4, example of SHA-256 for the message "abc".
SHA256_ABC = 0xBA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD


def rows(**columns):
    return rows_of(pd.DataFrame(columns, dtype=object), "rows.csv")


@pytest.mark.parametrize("text", ["abc", "ABC", "  abc!", "\u00e9abc."])
def test_words_hash_is_sha256_of_the_words_alone(text):
    assert words_hash(text) == SHA256_ABC


def test_words_are_joined_by_one_blank():
    assert words_hash("Swap--bucket,  4") == words_hash("swap bucket 4")
    assert words_hash("swap bucket") != words_hash("swapbucket")


def test_rows_refuse_another_index():
    frame = pd.DataFrame({"text": ["a", "b"]}, index=[1, 2])

    with pytest.raises(ValueError, match="rows_of"):
        type(rows(text=[]))(frame=frame, source="x")


def test_taken_rows_are_renumbered():
    taken = take_rows(rows(text=["a", "b", "c"]), np.array([2, 0]))

    assert taken.frame["text"].tolist() == ["c", "a"]
    assert taken.frame.index.tolist() == [0, 1]


def test_missing_column_is_named_with_those_that_exist():
    with pytest.raises(CampaignError) as caught:
        require_columns(rows(words=["a"], kind=["b"]), ["words", "label"])

    assert "no column 'label'" in str(caught.value)
    assert "'words', 'kind'" in str(caught.value)


def test_no_rows_are_refused_by_name_of_the_source():
    with pytest.raises(CampaignError, match=r"rows\.csv holds no rows"):
        require_rows(rows(text=[]))


BASE = {"text": ["ab", "x"], "label": ["c", "y"]}


@pytest.mark.parametrize(
    "other",
    [
        {"text": ["ab", "x"], "label": ["c", "z"]},
        {"text": ["x", "ab"], "label": ["y", "c"]},
        {"text": ["a", "x"], "label": ["bc", "y"]},
        {"text": ["abx", ""], "label": ["c", "y"]},
        {"text": ["ab", "x"], "label": ["c", None]},
        {"text": ["ab", "x"], "tag": ["c", "y"]},
        {"text": ["ab"], "label": ["c"]},
    ],
    ids=["cell", "order", "split", "joined", "missing", "column", "fewer"],
)
def test_version_differs_when_anything_differs(other):
    assert dataset_version(rows(**other)) != dataset_version(rows(**BASE))


def test_version_ignores_the_order_of_columns_and_the_source():
    turned = rows_of(pd.DataFrame({"label": ["c", "y"], "text": ["ab", "x"]}), "elsewhere")

    assert dataset_version(turned) == dataset_version(rows(**BASE))


@pytest.mark.parametrize(
    ("one", "other"), [("1", 1), ("", None), ("-", None), ("nan", float("nan"))]
)
def test_version_tells_a_text_from_what_looks_like_it(one, other):
    assert dataset_version(rows(text=[one])) != dataset_version(rows(text=[other]))


def test_version_takes_what_utf8_cannot_encode():
    assert len(dataset_version(rows(text=["a\ud800", ["list"]]))) == 64


@pytest.mark.parametrize(
    ("cell", "missing", "text"),
    [
        (None, True, False),
        (float("nan"), True, False),
        (pd.NA, True, False),
        (pd.NaT, True, False),
        ("", False, True),
        ("na", False, True),
        ("a\ud800", False, False),
        (180, False, False),
        (["a"], False, False),
        (b"a", False, False),
    ],
    ids=repr,
)
def test_cells_are_missing_or_text_or_neither(cell, missing, text):
    assert is_missing(cell) is missing
    assert is_text(cell) is text
