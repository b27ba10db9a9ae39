"""`fedloom federation init` and `show`, over a store in a folder."""

import json

import pytest
from typer.testing import CliRunner

from fl_core.artifacts.local import LocalStore
from fl_core.errors import CampaignError, PolicyRefused
from fl_core.privacy.federation import FederationLimits, charge_release, open_federation
from fl_core.updates.records import GaussianEvent
from fl_core.updates.signing import fingerprint, read_key
from flows.cli.main import app

MADE = ("federation", "init", "--epsilon", "10", "--delta", "1e-3")


@pytest.fixture
def fedloom(tmp_path, monkeypatch):
    """Run the command as a coordinator whose store is a folder."""
    monkeypatch.setenv("FEDLOOM_STORE", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("FEDLOOM_FEDERATION", str(tmp_path / "own"))

    def run(*arguments):
        return CliRunner().invoke(app, list(arguments))

    return run


def test_ledger_that_was_made_is_shown_with_what_is_spent(fedloom, tmp_path):
    made = fedloom(*MADE, "--folder", str(tmp_path / "own"), "--json")
    key = read_key(tmp_path / "own" / "federation.pem")
    federation = open_federation(
        LocalStore(tmp_path / "store"), limits=FederationLimits(epsilon=10, delta=1e-3), key=key
    )
    charge_release(
        federation,
        campaign_digest="c" * 64,
        round_number=3,
        plan_sha256="a" * 64,
        event=GaussianEvent(noise_multiplier=1.5),
    )

    shown = fedloom("federation", "show", "--json")

    assert made.exit_code == shown.exit_code == 0
    assert f"FEDLOOM_FEDERATION={tmp_path / 'own'}" in made.stderr.replace("\n", "")
    document = json.loads(shown.stdout)
    own = fingerprint(federation.ledger.public_key)
    assert json.loads(made.stdout)["fingerprint"] == document["fingerprint"] == own
    assert document["epsilon"] == pytest.approx(1.912, abs=1e-3)
    assert [entry["kind"] for entry in document["entries"]] == ["genesis", "reserve"]
    assert "of 10 at delta 0.001" in shown.stderr


def test_second_ledger_is_refused_whatever_folder_is_named(fedloom, tmp_path):
    fedloom(*MADE, "--folder", str(tmp_path / "own"))

    again = fedloom(*MADE, "--folder", str(tmp_path / "own"))
    other = fedloom(*MADE, "--folder", str(tmp_path / "other"))

    assert isinstance(again.exception, CampaignError)
    assert isinstance(other.exception, PolicyRefused)


def test_nothing_is_shown_where_there_is_no_ledger(fedloom, monkeypatch):
    monkeypatch.delenv("FEDLOOM_FEDERATION")

    shown = fedloom("federation", "show")

    assert isinstance(shown.exception, CampaignError)
    assert "fedloom federation init" in shown.exception.hint


def test_limits_out_of_range_are_refused_before_anything_is_written(fedloom, tmp_path):
    refused = fedloom(
        "federation", "init", "--epsilon", "10", "--delta", "1", "--folder", str(tmp_path / "own")
    )

    assert isinstance(refused.exception, CampaignError)
    assert not (tmp_path / "own").exists()
    assert not (tmp_path / "store").exists()
