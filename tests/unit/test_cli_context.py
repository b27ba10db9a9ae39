"""Every command speaks to the same coordinator."""

import json
import os

import pytest
from typer.testing import CliRunner

from fl_core.errors import CampaignError
from flows.cli.context import coordinator_environment, use_coordinator
from flows.cli.main import app
from flows.stack_file import stack_path

VARIABLES = ("FEDLOOM_STORE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "FEDLOOM_HOME")


@pytest.fixture(autouse=True)
def nothing_stated(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("needed", "missing"),
    [(("s3", "prefect"), "PREFECT_API_URL"), (("s3", "mlflow"), "MLFLOW_TRACKING_URI")],
)
def test_store_that_is_stated_without_its_server_is_refused_and_kept(
    needed, missing, monkeypatch, tmp_path
):
    own = (tmp_path / "production").as_uri()
    monkeypatch.setenv("FEDLOOM_STORE", own)

    with pytest.raises(CampaignError, match=f"FEDLOOM_STORE is set and {missing} is not"):
        use_coordinator(tmp_path, needed=needed)

    assert os.environ["FEDLOOM_STORE"] == own


def test_store_that_is_stated_is_enough_where_only_the_store_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLOOM_STORE", (tmp_path / "production").as_uri())

    assert coordinator_environment(tmp_path, needed=("s3",)) is os.environ


@pytest.mark.parametrize("variables", [{}, {"PREFECT_API_URL": "http://x/api"}], ids=str)
def test_without_a_store_and_a_stack_nothing_is_named(variables, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert coordinator_environment(tmp_path, needed=("s3",)) is None
    with pytest.raises(CampaignError, match="FEDLOOM_STORE is not set"):
        use_coordinator(tmp_path)


def test_doctor_looks_at_what_the_environment_names_beside_a_stack(monkeypatch, tmp_path):
    home = tmp_path / ".fedloom"
    home.mkdir()
    # A doctor that asked this stack would read its ports here.
    stack_path(home).write_text("{}")
    monkeypatch.setenv("FEDLOOM_STORE", (tmp_path / "production").as_uri())

    ended = CliRunner().invoke(app, ["doctor", "--home", str(home), "--json"])

    checks = {each["name"]: each for each in json.loads(ended.stdout)["checks"]}
    assert "local stack" not in checks
    assert checks["store"]["verdict"] == "ok"
