"""What `fedloom check` shows beside epsilon: whom it protects, and what is absurd."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner
from worlds import campaign_of

from flows.cli import cautions
from flows.cli.main import app
from flows.cli.templates import CAMPAIGN


def written(tmp_path, *changes):
    text = CAMPAIGN.format(file="first.toml", id="first")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "first.toml"
    file.write_text(text, encoding="utf-8")
    return file


def check(file):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["check", str(file), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), " ".join(result.stderr.split())


# The comment signs of the template are taken away, so that what it offers is what is tried.
PEOPLE = (
    ('# unit = "patient_id"', 'unit = "patient_id"'),
    ("# max_rows_per_unit = 4", "max_rows_per_unit = 4"),
)


def test_check_of_the_written_campaign_warns_of_nothing(tmp_path):
    document, said = check(written(tmp_path))

    assert document["warnings"] == []
    assert "warning" not in said
    assert "every record of every site" in said


def test_check_says_whom_the_campaign_protects(tmp_path):
    document, said = check(written(tmp_path, *PEOPLE))

    assert (document["unit"], document["max_rows_per_unit"]) == ("patient_id", 4)
    assert "every patient_id (up to 4 rows each) of every site" in said


def test_what_a_campaign_promises_stands_in_one_line(tmp_path):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["check", str(written(tmp_path))])

    lines = [line.strip() for line in result.stderr.splitlines()]
    assert "every record of every site, delta 1e-05, limit 8, by PLD" in lines


def test_check_warns_of_an_epsilon_without_meaning_and_goes_on(tmp_path):
    document, said = check(written(tmp_path, ("epsilon = 8.0", "epsilon = 80.0")))

    assert [w["field"] for w in document["warnings"]] == ["privacy.record.epsilon"]
    assert "warning: privacy.record.epsilon: 80 is above 50" in said


def test_check_says_when_answers_leave(tmp_path):
    file = written(tmp_path, ("# [cohort]", "[cohort]"), ("# upload_after_s", "upload_after_s"))

    document, said = check(file)

    assert document["upload_after_s"] == 120
    assert "answers leave 120 s after each plan" in said


@pytest.mark.parametrize("batch_size", [1e-6], ids=["tiny divisor"])
def test_warning_about_the_signal_needs_a_locked_campaign(batch_size, monkeypatch):
    console = Console(file=io.StringIO(), width=400)
    monkeypatch.setattr(cautions, "console_err", console)
    campaign = campaign_of(
        training={"local_steps": 8, "learning_rate": 0.1, "batch_size": batch_size}
    )

    found = cautions.show_warnings(campaign)

    assert [w["field"] for w in found] == ["privacy.record.noise_multiplier"]
    assert "signal to noise is at best" in console.file.getvalue()
