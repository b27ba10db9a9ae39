"""`fedloom site init --unit`: policy, ledger and key of a site that protects people."""

import json

import pytest
from typer.testing import CliRunner
from worlds import campaign_of

from fl_core.errors import CampaignError
from flows.cli.main import app
from tasks.rows_fit import require_rows_fit
from tasks.site_config import SiteHome, open_site, read_site_config, site_policy
from tasks.suite_files import suite_sha256
from tasks.unit_key import FILE

ROWS = "text,label,patient_id\na,x,p1\nb,y,p1\nc,x,\n"


def init(tmp_path, *options, rows=ROWS):
    data = tmp_path / "rows.csv"
    data.write_text(rows, encoding="utf-8")
    home = SiteHome(tmp_path / "site")
    arguments = ["north", "--data", str(data), "--epsilon", "8", "--delta", "1e-5"]
    witness = ["--witness", str(tmp_path / "witness"), "--store", (tmp_path / "store").as_uri()]
    result = CliRunner().invoke(
        app,
        ["site", "init", *arguments, "--home", str(home.root), *witness, *options, "--json"],
    )
    return home, result


def test_site_for_people_counts_them_from_the_ledgers_first_entry_on(tmp_path):
    home, result = init(tmp_path, "--unit", "patient_id", "--max-rows-per-unit", "4")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["site"] == "north"
    policy = site_policy(home)
    assert (policy.unit, policy.max_rows_per_unit) == ("patient_id", 4)
    (genesis,) = open_site(home, read_site_config(home)).ledger.entries()
    assert genesis.unit == "patient_id"
    assert len((home.root / FILE).read_bytes()) == 32


def test_site_counts_rows_unless_told_otherwise(tmp_path):
    home, result = init(tmp_path)

    assert result.exit_code == 0, result.output
    policy = site_policy(home)
    assert (policy.unit, policy.max_rows_per_unit) == ("row", 1)


@pytest.mark.parametrize(
    ("options", "rows", "said"),
    [
        (("--unit", "person"), ROWS, "no column 'person'"),
        (("--unit", "patient_id"), "text,label,patient_id\na,x,\n", "no row of .* has a value in"),
        (("--max-rows-per-unit", "4"), ROWS, "the unit is the row"),
        (("--unit", "a b", "--max-rows-per-unit", "4"), "text,a b\na,p\n", "unit is 'a b'"),
    ],
    ids=["no column", "empty column", "bound without unit", "name of the column"],
)
def test_unit_that_cannot_be_counted_is_refused_before_anything_is_made(
    tmp_path, options, rows, said
):
    home, result = init(tmp_path, *options, rows=rows)

    assert isinstance(result.exception, CampaignError)
    with pytest.raises(CampaignError, match=said):
        raise result.exception
    assert not home.key.exists()
    assert not home.policy.exists()


@pytest.mark.parametrize(
    ("unit", "rows", "said"),
    [
        ("patient_id", ROWS, None),
        ("person", ROWS, "no column 'person'"),
        ("patient_id", "text,label,patient_id\na,x,\n", "no row of .* has a value in"),
    ],
    ids=["fits", "no column", "empty column"],
)
def test_rows_are_held_against_the_unit_before_a_campaign_is_approved(tmp_path, unit, rows, said):
    home, result = init(tmp_path, rows=rows)
    assert result.exit_code == 0, result.output
    gate = {"name": "labelled-texts", "sha256": suite_sha256("labelled-texts")}
    record = campaign_of().privacy.record.model_dump() | {"unit": unit}
    campaign = campaign_of(gate=gate, privacy={"record": record})

    def check():
        require_rows_fit(home, read_site_config(home), campaign=campaign)

    if said is None:
        check()
        return
    with pytest.raises(CampaignError, match=said):
        check()


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        (("--delta", "0.34"), True),  # Three rows: 1 / 3 is the edge.
        (("--delta", "0.33"), False),
        (("--delta", "0.34", "--unit", "patient_id"), False),  # One person.
    ],
    ids=["above one over the rows", "below", "below one over the people"],
)
def test_delta_that_publishing_one_row_would_keep_is_warned_of(tmp_path, options, is_warned):
    _, result = init(tmp_path, *options)

    assert result.exit_code == 0, result.output
    assert ("is not below one over the rows or people" in result.stderr) == is_warned


def test_missing_column_of_the_unit_is_answered_with_what_a_unit_is(tmp_path):
    _, result = init(tmp_path, "--unit", "person")

    assert result.exception is not None
    assert "no column 'person', the unit" in str(result.exception)
    assert result.exception.hint == "name the column that says whose a row is"
