"""Take the pictures of the README from a home that the demo has left.

    fedloom demo && fedloom up --detach && python docs/screenshots.py .fedloom && fedloom down

Needs Chromium. Look at what it writes to docs/images before you commit it.
"""

import sys
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

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


def mlflow_page(browser: Browser, stack: Stack) -> None:
    """Quality against epsilon."""
    from tasks.round_log import last_logged
    from tasks.settings import open_store, read_settings

    logged = last_logged(open_store(read_settings(environment(stack))), CAMPAIGN)
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


def shot(page: Page, name: str) -> None:
    """Let animations end, then take the picture."""
    page.wait_for_timeout(4000)
    page.screenshot(path=str(FOLDER / name))
    print(FOLDER / name)


def main() -> None:
    """Take all pictures of one home."""
    stack = connect(Path(sys.argv[1]))
    if stack is None:
        raise SystemExit(f"nothing runs over {sys.argv[1]}; `fedloom up --detach` starts it")
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        prefect_page(browser, stack)
        mlflow_page(browser, stack)
        browser.close()


if __name__ == "__main__":
    main()
