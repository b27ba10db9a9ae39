"""Take the pictures of README and docs from a home that the demo has left.

    fedloom demo && fedloom up --detach && python docs/screenshots.py .fedloom && fedloom down

Needs Chromium. Look at what it writes to docs/images before you commit it.
"""

import sys
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from fl_core.artifacts.store import ObjectStore
from flows.local_stack import Stack, connect
from flows.local_workers import environment

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SIZE = {"width": 1280, "height": 800}
FOLDER = Path(__file__).with_name("images")
CAMPAIGN = "excavators"


def prefect_page(browser: Browser, stack: Stack) -> None:
    """The campaign's run: rounds on a time line, and their tasks."""
    found = httpx.post(
        f"{stack.prefect_url}/api/flow_runs/filter",
        json={
            "flows": {"name": {"any_": ["run-campaign"]}},
            "flow_runs": {"name": {"any_": [CAMPAIGN]}},
        },
        timeout=30,
    ).json()
    page = browser.new_page(viewport=SIZE)
    page.goto(f"{stack.prefect_url}/runs/flow-run/{found[0]['id']}")
    page.get_by_text("Completed").first.wait_for(timeout=60_000)
    shot(page, "prefect.png")


def mlflow_page(browser: Browser, store: ObjectStore) -> None:
    """Quality against epsilon."""
    from tasks.round_log import last_logged

    logged = last_logged(store, CAMPAIGN)
    if logged is None:
        raise SystemExit(f"no round of {CAMPAIGN!r} is in MLflow; run `fedloom demo` first")
    page = browser.new_page(viewport=SIZE)
    # MLflow's own assistant would cover a third of the page.
    page.add_init_script(
        "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
        "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
    )
    page.goto(logged.chart_url)
    page.get_by_text("Quality against epsilon").first.wait_for(timeout=60_000)
    shot(page, "mlflow.png")


def statement_page(browser: Browser, store: ObjectStore) -> None:
    """The privacy statement of the last version, its first screen."""
    from fl_core.rounds.budgets import closed_rounds
    from fl_core.rounds.plan import read_assembly
    from fl_core.rounds.version_statement import version_statement
    from tasks.statement_page import to_html

    last = closed_rounds(store, CAMPAIGN)
    page = browser.new_page(viewport=SIZE)
    page.set_content(to_html(version_statement(read_assembly(store, CAMPAIGN), store, last)))
    shot(page, "statement.png")


def plan_picture(store: ObjectStore) -> None:
    """What ten rounds of a next campaign would cost each site; the product draws it itself."""
    from fl_core.campaign.loading import parse_campaign
    from flows.cli.plan import make_plan
    from flows.cli.templates import CAMPAIGN as TEMPLATE
    from tasks.plan_figure import draw_plan

    planned = parse_campaign(TEMPLATE.format(file="next.toml", id="next"), source="next.toml")
    target = FOLDER / "plan.png"
    target.write_bytes(draw_plan(make_plan(planned, store, rounds=10)))
    print(target)


def shot(page: Page, name: str) -> None:
    """Let animations end, then take the picture."""
    page.wait_for_timeout(4000)
    page.screenshot(path=str(FOLDER / name))
    print(FOLDER / name)


def main() -> None:
    """Take all pictures of one home."""
    from tasks.settings import open_store, read_settings

    stack = connect(Path(sys.argv[1]))
    if stack is None:
        raise SystemExit(f"nothing runs over {sys.argv[1]}; `fedloom up --detach` starts it")
    store = open_store(read_settings(environment(stack)))
    FOLDER.mkdir(exist_ok=True)
    plan_picture(store)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        prefect_page(browser, stack)
        mlflow_page(browser, store)
        statement_page(browser, store)
        browser.close()


if __name__ == "__main__":
    main()
