"""One federation per session: servers, two sites with real rows, and their workers."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import local_stack
from flows.demo import SERIES
from flows.demo_data import write_demo
from flows.local_sites import LocalSite, make_local_site, site_home
from flows.local_workers import start_workers
from flows.processes import ended_with_this_process
from tests.e2e.federation import SITES, Federation

# Rows that no figure, no report and no log outside the site may carry.
CANARY = "kanarienvogel"
CANARY_ROWS = [
    f'"{CANARY} text of a good row, engine will not start","Engine","2005-01-01"',
    f'"row with a label of its own","{CANARY} label","2005-01-01"',
    f'"row with a date of its own","Engine","{CANARY} date"',
    f'"{CANARY} {"x" * 3000}","Engine","2005-01-01"',
    f'"","{CANARY}-empty","2005-01-01"',
]


@pytest.fixture(scope="session")
def federation() -> Iterator[Federation]:
    with tempfile.TemporaryDirectory(prefix="fedloom-e2e-") as name:
        home, folder = Path(name) / "home", Path(name) / "work"
        folder.mkdir()
        with ended_with_this_process():
            stack = local_stack.start(home)
            make_sites(home, folder)
            enrol(Federation(stack, folder))
            start_workers(stack)
            yield Federation(stack, folder)
            local_stack.stop(home)


def make_sites(home: Path, folder: Path) -> None:
    """Make the two sites of a running stack, with the demo's rows and canaries among them."""
    from fl_core.privacy.policy_template import policy_text

    stack = local_stack.connect(home)
    assert stack is not None
    data = write_demo(folder / "data")
    (home / "holdouts").mkdir(exist_ok=True)
    shutil.copy(data.holdout, home / "holdouts" / data.holdout.name)
    for site in SITES:
        rows = site_home(home, site).root / "rows.csv"
        rows.parent.mkdir(parents=True, exist_ok=True)
        rows.write_text(data.sites[site].read_text() + "\n".join(CANARY_ROWS) + "\n")
        policy = policy_text(
            epsilon=40.0, delta=1e-5, series=SERIES.model_copy(update={"max_steps": 500})
        )
        make_local_site(stack, LocalSite(site, Path("rows.csv"), policy, declared_examples=64))


def enrol(federation: Federation) -> None:
    """Admit both sites at the coordinator."""
    for site in SITES:
        file = federation.site_home(site) / "enrol.json"
        federation.fedloom("enrol", str(file), "--home", str(federation.home), "--yes")
