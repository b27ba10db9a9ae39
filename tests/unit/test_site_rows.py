"""Reading rows: everything stays text, and an error never holds a row."""

import json
import os
from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl_core.data.rows import dataset_version, require_columns, require_rows
from fl_core.errors import CampaignError
from tasks.site_rows import read_rows

CANARY = "CANARY-7f3a"


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(rows):
    return rows.frame.to_dict("list")


def test_csv_cells_stay_as_they_are_written(tmp_path):
    path = written(
        tmp_path, "rows.csv", '\ufefftext,label\n"oil, left",180\nna,\nNULL,1e5\n 007 ,true\n'
    )

    assert cells(read_rows(path)) == {
        "text": ["oil, left", "na", "NULL", " 007 "],
        "label": ["180", "", "1e5", "true"],
    }


def test_csv_line_that_ends_early_leaves_empty_texts(tmp_path):
    path = written(tmp_path, "rows.csv", "text,label,date\noil,Engine\n")

    assert cells(read_rows(path)) == {"text": ["oil"], "label": ["Engine"], "date": [""]}


def test_json_numbers_keep_their_digits_and_nesting_is_left_for_the_gate(tmp_path):
    lines = '{"text": "oil", "label": 180.0}\n\n{"label": null, "text": ["a"], "ok": true}\n'
    path = written(tmp_path, "rows.jsonl", lines)

    assert cells(read_rows(path)) == {
        "text": ["oil", ["a"]],
        "label": ["180.0", None],
        "ok": [None, "true"],
    }


def test_json_may_spell_what_utf8_cannot(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"text": "oil\\ud800"}\n')

    assert cells(read_rows(path)) == {"text": ["oil\ud800"]}


def test_parquet_values_become_the_text_a_person_would_write(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["oil", None, "tooth"]).dictionary_encode(),
            "label": pa.array([180, 7, None], pa.int64()),
            "date": pa.array([date(2004, 7, 1), None, date(2005, 3, 20)]),
            "seen": pa.array([datetime(2004, 7, 1), datetime(2004, 7, 1, 8, 30), None]),  # noqa: DTZ001 - naive times are the case
            "ok": pa.array([True, False, None]),
            "parts": pa.array([["a"], [], None]),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    assert cells(read_rows(tmp_path / "rows.parquet")) == {
        "text": ["oil", None, "tooth"],
        "label": ["180", "7", None],
        "date": ["2004-07-01", None, "2005-03-20"],
        "seen": ["2004-07-01", "2004-07-01T08:30:00", None],
        "ok": ["true", "false", None],
        "parts": [["a"], [], None],
    }


def test_the_same_rows_have_one_version_in_every_format(tmp_path):
    table = {"text": ["oil", "tooth"], "label": ["Engine", "Bucket"]}
    pd.DataFrame(table).to_csv(tmp_path / "r.csv", index=False)
    pq.write_table(pa.table(table), tmp_path / "r.parquet")
    records = pd.DataFrame(table).to_dict("records")
    written(tmp_path, "r.jsonl", "\n".join(map(json.dumps, records)))

    versions = {
        dataset_version(read_rows(tmp_path / f"r.{s}")) for s in ("csv", "jsonl", "parquet")
    }

    assert len(versions) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_file_without_rows_is_refused_at_site_start(tmp_path, name):
    rows = read_rows(written(tmp_path, name, ""))

    with pytest.raises(CampaignError, match="holds no rows"):
        require_rows(rows)
    with pytest.raises(CampaignError, match="its columns are none"):
        require_columns(rows, ["text"])


BROKEN = [
    ("rows.csv", f"text,label\na,b\n{CANARY},b,c\n", "at line 3"),
    ("rows.csv", f"text,label\n{CANARY},b,c\n", "more fields in a row"),
    ("rows.csv", b"text,label\n" + CANARY.encode() + b"\xff,b\n", "not UTF-8"),
    ("rows.csv", f'text,label\n"{CANARY},b\n', "not a regular CSV"),
    ("rows.jsonl", f'{{"text": "a"}}\n{{"text": "{CANARY}"\n', "line 2 holds no JSON"),
    ("rows.jsonl", f'["{CANARY}"]\n', "line 1 holds a JSON list"),
    ("rows.jsonl", b'{"text": "' + CANARY.encode() + b'\xff"}\n', "not UTF-8"),
    ("rows.jsonl", CANARY + "[" * 100_000, "line 1 holds"),
    ("rows.jsonl", '{"text": ' + "[" * 100_000, "line 1 holds"),
    ("rows.parquet", f"PAR1{CANARY}PAR1", "not a parquet file"),
    ("rows.parquet", "", "not a parquet file"),
    ("rows.txt", CANARY, "expected one of .csv"),
]


@pytest.mark.parametrize(("name", "content", "problem"), BROKEN, ids=[p for _, _, p in BROKEN])
def test_broken_file_is_one_clear_error_without_a_row(tmp_path, name, content, problem):
    path = written(tmp_path, name, content)

    with pytest.raises(CampaignError) as caught:
        read_rows(path)

    error = caught.value
    assert name in str(error)
    assert problem in str(error)
    assert error.hint
    # The text of the library's error is not chained, so no traceback prints it.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert CANARY not in str(error) + error.hint


def test_missing_file_names_the_setting_to_correct(tmp_path):
    with pytest.raises(CampaignError, match="no file of rows") as caught:
        read_rows(tmp_path / "rows.csv")

    assert "`data`" in caught.value.hint


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_folder_in_place_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()

    with pytest.raises(CampaignError, match="no file of rows"):
        read_rows(tmp_path / name)


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    column = pa.array(["a"])
    table = pa.Table.from_arrays([column, column], names=["text", "text"])
    pq.write_table(table, tmp_path / "rows.parquet")

    with pytest.raises(CampaignError, match="two columns named 'text'"):
        read_rows(tmp_path / "rows.parquet")


def test_unreadable_file_says_what_the_system_said(tmp_path, monkeypatch):
    path = written(tmp_path, "rows.jsonl", '{"text": "a"}\n')

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13), str(path))

    # Tests may run as root, whom no file mode stops.
    monkeypatch.setattr("pathlib.Path.open", refuse)

    with pytest.raises(CampaignError, match="Permission denied"):
        read_rows(path)
