"""`fedloom plan` and `fedloom statement` over a folder store and a real MLflow server."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_core.artifacts.local import LocalStore
from flows.cli.main import app
from tasks.round_log import round_log
from tasks.settings import read_settings
from tasks.tracking import LoggedRound, log_round
from tasks.tracking_client import connect
from tests.round_steps import finish, take_part
from tests.worlds import World, campaign_of, world_of


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{tmp_path_factory.mktemp('store')}"


@pytest.fixture(scope="module")
def world(store_url: str) -> World:
    """Two rounds of the tiny campaign, in a store that the command can open."""
    world = world_of(campaign_of(id="told", model="told-model"))
    for number in (1, 2):
        for site in world.sites:
            take_part(world, site, number)
        finish(world, number)
    store = LocalStore(Path(store_url.removeprefix("file://")))
    for key in world.store.list(""):
        store.put_once(key, world.store.get(key))
    return world


@pytest.fixture(scope="module")
def logged(world: World, store_url: str, mlflow_server: str) -> list[LoggedRound]:
    settings = read_settings({"FEDLOOM_STORE": store_url})
    return [
        log_round(
            round_log(world.assembly, world.store, number, settings), tracking_uri=mlflow_server
        )
        for number in (1, 2)
    ]


def fedloom(store_url: str, mlflow: str, *words: str) -> Any:
    env = {
        "FEDLOOM_STORE": store_url,
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLFLOW_TRACKING_URI": mlflow,
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    return CliRunner(env=env).invoke(app, words)


@pytest.fixture
def command(store_url: str, mlflow_server: str, logged: list[LoggedRound]) -> Any:
    return lambda *words: fedloom(store_url, mlflow_server, *words)


def test_statement_of_a_version_is_shown_and_holds(command, tmp_path):
    page = tmp_path / "statement.html"

    done = command("statement", "told-model", "2", "--verify", "--html", str(page))

    assert done.exit_code == 0, done.output
    assert "epsilon 5.27 at delta 1e-05" in done.output
    assert "the statement holds" in done.output
    assert "holds: logged page" in done.output
    assert "holds: the federation's ledger (nothing to check" in done.output
    assert "<h1>Privacy of told, version of round 2</h1>" in page.read_text()


def test_version_can_be_named_by_its_alias(command):
    done = command("statement", "told-model", "candidate", "--json")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["statement"]["round"] == 2


def test_statement_needs_no_mlflow(store_url, logged):
    done = fedloom(
        store_url, "http://127.0.0.1:9", "statement", "--campaign", "told", "--round", "1",
        "--verify", "--json",
    )  # fmt: skip

    document = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert document["statement"]["record"]["epsilon"] == pytest.approx(4.26, abs=0.01)
    assert all(not check["complaint"] for check in document["verification"]["checks"])


CHANGES = {
    "statement.json": ('"delta":1e-05', '"delta":1e-06', "differs from the store"),
    "statement.md": ("5.27", "0.27", "statement.md does not say"),
    "statement.html": ("5.27", "0.27", "statement.html does not say"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_in_mlflow_is_found(command, logged, mlflow_server, tmp_path, name):
    client, run_id = connect(mlflow_server), logged[1].run_id
    honest = Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text()
    was, becomes, said = CHANGES[name]
    client.log_text(run_id, honest.replace(was, becomes), name)

    done = command("statement", "told-model", "2", "--verify", "--json")
    client.log_text(run_id, honest, name)

    assert was in honest
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert command("statement", "told-model", "2", "--verify").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("statement",), "a model and its version are needed"),
        (("statement", "told-model", "77"), "its versions are 1 to 2, candidate is 2"),
        (("statement", "unknown", "1"), "has no version '1' that fedloom logged; models are "),
        (("statement", "told' or '1'='1", "1"), "is no name of a model"),
        (("statement", "--campaign", "told"), "--round is needed"),
        (("statement", "--campaign", "told", "--round", "5"), "released no version"),
        (("statement", "--campaign", "other", "--round", "1"), "no campaign 'other'"),
    ],
    ids=["nothing", "version", "model", "quote", "round", "later", "campaign"],
)
def test_what_does_not_exist_is_said_in_one_line(command, words, said):
    done = command(*words)

    assert done.exit_code == 1
    assert said in str(done.exception)


def test_campaigns_run_keeps_the_plan_and_the_rounds_run_the_page(logged, mlflow_server, tmp_path):
    client = connect(mlflow_server)

    plan = [f.path for f in client.list_artifacts(logged[0].parent_run_id, "plan")]
    page = [f.path for f in client.list_artifacts(logged[1].run_id)]

    assert sorted(plan) == ["plan/epsilon.png", "plan/plan.json"]
    assert {"statement.html", "statement.json", "statement.md"} <= set(page)
    local = client.download_artifacts(logged[0].parent_run_id, "plan/plan.json", str(tmp_path))
    kept = json.loads(Path(local).read_text())
    assert [point["round"] for point in kept["budgets"][0]["after"]] == [1, 2, 3, 4, 5, 6]
    assert kept["budgets"][0]["status"] == "stated"


def test_plan_of_a_running_campaign_goes_on_from_what_sites_state(command, tmp_path):
    picture = tmp_path / "plan.png"

    done = command("plan", "told", "--json", "--png", str(picture), "--tuning-runs", "10")

    document = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert (document["first_round"], document["rounds"]) == (3, 4)
    assert [b["status"] for b in document["budgets"]] == ["stated"] * 3
    assert {b["rounds_left"] for b in document["budgets"]} == {4}
    assert document["worst_epsilon"] == pytest.approx(7.93, abs=0.01)
    tuning = document["tuning"]
    assert tuning["one_run"] < tuning["best_of_random"] < tuning["all_runs"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "ends first: 4 rounds left at noise 0.8, enough for the 4 planned" in done.output


def test_plan_without_a_store_shows_the_campaign_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDLOOM_STORE", raising=False)
    file = tmp_path / "first.toml"
    CliRunner().invoke(app, ["init", str(file), "--id", "first"])

    done = CliRunner(env={"COLUMNS": "120"}).invoke(
        app, ["plan", str(file), "--home", str(tmp_path), "--rounds", "2", "--json"]
    )

    document = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert document["has_store"] is False
    assert {b["status"] for b in document["budgets"]} == {"not stated"}
    assert "no store is reached" in done.output
