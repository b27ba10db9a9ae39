"""The format of suites, and what it refuses."""

import json
import subprocess
import sys

import pytest

from fl_core.artifacts.documents import sha256_hex
from fl_core.campaign.specs import NamedContent, TaskSpec
from fl_core.errors import CampaignError, PolicyRefused
from tasks.suite_files import (
    load_locked_suite,
    load_suite,
    required_columns,
    resolve_expectations,
    suite_names,
    suite_path,
    suite_sha256,
)

TASK = TaskSpec(labels=("Engine", "Bucket"), text="note", target="system")
ANSWERS = TaskSpec(kind="causal_lm", text="prompt", target="answer")
PRESENT = {
    "type": "expect_column_values_to_not_be_null",
    "kwargs": {"column": "$text"},
    "severity": "critical",
    "meta": {"rule": "text_present", "scope": "row"},
}


def suite(folder, **changes):
    content = {"name": "own", "columns": ["$text"], "minimum_rows": 1, "expectations": [PRESENT]}
    (folder / "own.json").write_text(json.dumps(content | changes))
    return folder


def changed(**changes):
    return PRESENT | changes


def test_shipped_suites_load_and_their_hash_is_that_of_the_bytes():
    assert suite_names() == ["instructions", "labelled-texts", "work-orders"]
    for name in suite_names():
        data = suite_path(name).read_bytes()
        assert load_suite(name).sha256 == suite_sha256(name) == sha256_hex(data)


def test_templates_take_columns_and_labels_of_the_task():
    work_orders = load_suite("work-orders")

    resolved = {e["meta"]["rule"]: e for e in resolve_expectations(work_orders, TASK)}

    assert required_columns(work_orders, TASK) == ("note", "system", "date")
    assert resolved["label_known"]["kwargs"] == {
        "column": "system",
        "value_set": ["Engine", "Bucket"],
    }
    assert resolved["no_duplicates"]["kwargs"]["column_list"] == ["note", "system", "date"]


def test_suite_that_asks_for_labels_refuses_a_task_without():
    with pytest.raises(CampaignError, match=r"asks for \$labels, which a causal_lm task"):
        resolve_expectations(load_suite("work-orders"), ANSWERS)


def test_a_dollar_in_a_pattern_is_no_template(tmp_path):
    pattern = changed(
        type="expect_column_values_to_match_regex", kwargs={"column": "$text", "regex": "$^"}
    )

    resolved = resolve_expectations(
        load_suite("own", folder=suite(tmp_path, expectations=[pattern])), TASK
    )

    assert resolved[0]["kwargs"] == {"column": "note", "regex": "$^"}


DUPLICATES = changed(type="expect_column_values_to_be_unique")
SHARE = changed(kwargs={"column": "$text", "mostly": 0.9})
SOME = changed(kwargs={"column": "$text", "row_condition": "x > 1", "condition_parser": "pandas"})
REFUSED = {
    "duplicates would drop rows": ({"expectations": [DUPLICATES]}, "does not look at one row"),
    "a share of rows": ({"expectations": [SHARE]}, "mostly makes rule text_present"),
    "a condition on rows": ({"expectations": [SOME]}, "row_condition makes rule"),
    "one name twice": ({"expectations": [PRESENT, PRESENT]}, "must be unique"),
    "built-in name": (
        {"expectations": [changed(meta={"rule": "minimum_rows", "scope": "row"})]},
        "not built in",
    ),
    "unlisted column": ({"columns": ["date"]}, "`columns` does not list"),
    "no minimum": ({"minimum_rows": 0}, "minimum_rows"),
    "no rules": ({"expectations": []}, "expectations"),
    "unknown severity": ({"expectations": [changed(severity="fatal")]}, "severity"),
    "value as a name": (
        {"expectations": [changed(meta={"rule": "Mrs Miller", "scope": "row"})]},
        "rule",
    ),
    "unknown field": ({"mostly": 1}, "mostly"),
    "another name": ({"name": "other"}, "its name is 'other'"),
}


@pytest.mark.parametrize(("changes", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_malformed_suite_is_refused_by_file_and_field(tmp_path, changes, problem):
    with pytest.raises(CampaignError) as caught:
        load_suite("own", folder=suite(tmp_path, **changes))

    assert "own.json" in str(caught.value)
    assert problem in str(caught.value)


def test_text_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "own.json").write_text("{")

    with pytest.raises(CampaignError, match=r"own\.json"):
        load_suite("own", folder=tmp_path)


def test_unknown_suite_is_refused_with_those_that_exist():
    with pytest.raises(CampaignError, match=r"'\.\./x' is no suite.*work-orders"):
        suite_path("../x")


def test_suite_that_differs_from_the_frozen_one_is_refused(tmp_path):
    folder = suite(tmp_path)
    frozen = NamedContent(name="own", sha256=suite_sha256("own", folder=folder))
    assert load_locked_suite(frozen, folder=folder).name == "own"

    suite(tmp_path, minimum_rows=2)

    with pytest.raises(PolicyRefused, match="the campaign froze"):
        load_locked_suite(frozen, folder=folder)


def test_locking_a_suite_does_not_import_great_expectations():
    code = (
        "import sys, tasks.suite_files as s, tasks.row_gate; s.suite_sha256('work-orders');"
        "print(sorted(m for m in sys.modules if m in ('great_expectations', 'torch', 'prefect')))"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
