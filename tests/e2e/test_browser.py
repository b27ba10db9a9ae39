"""A person at the Prefect UI: starts a campaign from the form, resumes it, is told of mistakes."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser import PATIENCE_MS, open_page
from tests.e2e.federation import Federation, wait_until


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


def open_form(page: Page, federation: Federation) -> None:
    deployment = federation.prefect("/deployments/filter", {})
    (found,) = [d for d in deployment if d["name"] == "run-campaign"]
    page.goto(f"{federation.stack.prefect_url}/deployments/deployment/{found['id']}/run")
    expect(page.get_by_text("Submit", exact=True)).to_be_visible(timeout=PATIENCE_MS)


def field(page: Page, name: str):
    """The text area under the label of a parameter."""
    return page.locator("textarea").nth({"campaign_id": 0, "campaign": 1}[name])


def runs_of(federation: Federation, campaign_id: str) -> list[dict]:
    return [r for r in federation.flow_runs("run-campaign") if r["name"] == campaign_id]


def test_form_starts_a_campaign_and_a_second_form_resumes_it(page, federation):
    file = federation.write_campaign("from-form", max_rounds=2)
    federation.approve(file)

    open_form(page, federation)
    expect(page.get_by_text("leave empty to start a new one")).to_be_visible()
    expect(page.get_by_text("Text of a campaign file (TOML)")).to_be_visible()
    field(page, "campaign").fill(file.read_text())
    page.locator("input[type=number]").first.fill("1")
    page.get_by_text("Submit", exact=True).click()
    wait_until(
        lambda: [r["state_type"] for r in runs_of(federation, "from-form")] == ["COMPLETED"],
        what="the first run completes",
    )
    after_one = federation.status("from-form")

    open_form(page, federation)
    field(page, "campaign_id").fill("from-form")
    page.get_by_text("Submit", exact=True).click()
    wait_until(
        lambda: [r["state_type"] for r in runs_of(federation, "from-form")] == ["COMPLETED"] * 2,
        what="the second run completes",
    )
    after_two = federation.status("from-form")

    assert [r["round"] for r in after_one["rounds"]] == [1]
    assert [r["round"] for r in after_two["rounds"]] == [1, 2]
    assert after_two["rounds"][0] == after_one["rounds"][0]
    assert after_two["end"] == "finished"


def test_form_refuses_an_id_that_cannot_be_one_before_anything_runs(page, federation):
    before = len(federation.flow_runs("run-campaign"))

    open_form(page, federation)
    field(page, "campaign_id").fill("Not An Id!")
    page.get_by_text("Submit", exact=True).click()

    expect(page.get_by_text("does not match").first).to_be_visible()
    assert len(federation.flow_runs("run-campaign")) == before


def test_round_page_shows_which_sites_have_answered(page, federation):
    (run, *_) = federation.flow_runs("federated-round")

    page.goto(f"{federation.stack.prefect_url}/runs/flow-run/{run['id']}")

    expect(page.get_by_text("collect-updates").first).to_be_visible()
    expect(page.get_by_text("answer site=site-a").first).to_be_visible()
