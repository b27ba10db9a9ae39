"""Plan, statement and its check over real servers, sites and witnesses; the page in a browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser import open_page
from tests.e2e.federation import SITES, Federation

# The same commands run over a folder store and a real MLflow in tests/integration.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(federation: Federation) -> dict:
    file = federation.write_campaign("told", max_rounds=2)
    federation.approve(file)
    home = ("--home", str(federation.home))
    before = federation.json("plan", str(file), *home)
    run = federation.run(str(file))
    return {"before": before, "run": run, "file": file}


def test_plan_before_a_campaign_says_what_its_rounds_came_to(told):
    # The plan knows the sites' earlier campaigns where there are any; else the campaign alone.
    planned = {b["site"]: b["after"][-1]["epsilon"] for b in told["before"]["budgets"]}
    last = told["run"]["rounds"][-1]["budgets"]

    assert told["before"]["rounds"] == 2
    for site in SITES:
        status = next(b["status"] for b in told["before"]["budgets"] if b["site"] == site)
        if status == "stated":
            assert planned[site] == pytest.approx(last[site]["epsilon"], rel=0.01)
        else:
            assert planned[site] <= last[site]["epsilon"] * 1.01


def test_plan_after_a_campaign_knows_every_budget(federation, told, tmp_path):
    picture = tmp_path / "plan.png"

    plan = federation.json(
        "plan", str(told["file"]), "--rounds", "3", "--png", str(picture),
        "--home", str(federation.home),
    )  # fmt: skip

    last = told["run"]["rounds"][-1]["budgets"]
    assert plan["first_round"] == 3
    for budget in plan["budgets"]:
        assert budget["status"] == "stated"
        assert budget["spent"] == pytest.approx(last[budget["site"]]["epsilon"])
        assert budget["rounds_left"] == last[budget["site"]]["rounds_left"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_statement_of_a_version_is_verified_from_the_store(federation, told):
    done = federation.json("statement", "told", "2", "--verify", "--home", str(federation.home))

    statement, verification = done["statement"], done["verification"]
    assert [c["what"] for c in verification["checks"] if c["complaint"]] == []
    (copies,) = [c["note"] for c in verification["checks"] if "copies" in c["what"]]
    # The coordinator's store is one witness of every site of a local stack.
    assert copies == "2 of 2 budgets have a copy of their ledger in this store"
    assert [site["site"] for site in statement["sites"]] == list(SITES)
    worst = max(b["epsilon"] for b in told["run"]["rounds"][-1]["budgets"].values())
    assert statement["worst_epsilon"] == pytest.approx(worst)
    assert statement["record"]["unit"] == "row"


@pytest.fixture
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


def test_officer_sees_the_statement_and_the_plan_in_mlflow(federation, told, page):
    from tasks.tracking_client import connect

    client = connect(federation.stack.mlflow_url)
    version = client.get_model_version("told", "2")
    run = client.get_run(version.run_id)
    experiment, parent = run.info.experiment_id, run.data.tags["mlflow.parentRunId"]
    runs = f"{federation.stack.mlflow_url}/#/experiments/{experiment}/runs"

    page.goto(f"{runs}/{version.run_id}/artifacts/statement.html")
    statement = page.frame_locator("iframe").first
    expect(statement.get_by_role("heading", name="Privacy of told")).to_be_visible()
    expect(statement.get_by_role("heading", name="Against whom")).to_be_visible()

    page.goto(f"{runs}/{parent}/artifacts/plan/epsilon.png")
    expect(page.locator("img[src^='blob:']:visible").first).to_be_visible()
