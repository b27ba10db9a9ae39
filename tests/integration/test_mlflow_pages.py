"""What a person sees in MLflow's pages, in a real browser.

The saved view is in a format of MLflow's user interface; this is the test that notices when a
later MLflow reads it differently.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page
from round_logs import make_campaign, released, skipped

from tasks.tracking import LoggedRound, log_round
from tests.browser import open_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged(mlflow_server: str) -> LoggedRound:
    campaign = make_campaign("pages", max_rounds=3)
    log_round(released(campaign, 1), tracking_uri=mlflow_server)
    log_round(skipped(campaign, 2), tracking_uri=mlflow_server)
    return log_round(released(campaign, 3), tracking_uri=mlflow_server)


@pytest.fixture
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


def test_link_opens_quality_against_epsilon_above_the_curves_by_round(page, logged):
    page.goto(logged.chart_url)

    page.locator(".xtitle").nth(2).wait_for()
    axes = page.locator(".xtitle").all_text_contents()
    titles = [
        page.get_by_text(title, exact=True).last.bounding_box()
        for title in ("Quality against epsilon", "By round")
    ]

    assert axes[:3] == ["dp/epsilon", "dp/epsilon", "Step"]
    assert titles[0]["y"] < titles[1]["y"]
    assert page.get_by_text("Error loading shared view").count() == 0


def test_page_of_the_campaign_says_the_latest_round_and_links_the_charts(page, logged):
    address, _, _ = logged.chart_url.partition("?")
    page.goto(f"{address}/{logged.parent_run_id}")

    page.get_by_text("Round 3: accuracy 0.630, epsilon 3.50 at delta 1e-05").first.wait_for()
    link = page.get_by_role("link", name="Quality against epsilon: open the charts").first

    assert link.get_attribute("href") == logged.chart_url
