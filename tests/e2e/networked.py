"""A federation whose sites are hosts of their own and reach the gateway only."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_core.privacy.policy_template import policy_text
from flows import local_stack
from flows.demo import SERIES
from flows.demo_data import write_demo
from flows.local_sites import LocalSite, make_local_site, site_home
from flows.local_workers import (
    evaluation_environment,
    register_pools,
    site_environment,
    start_coordinator_worker,
    start_worker,
)
from flows.processes import ServerProcess, ended_with_this_process
from flows.stack_file import Stated
from tests.e2e.federation import Federation
from tests.e2e.network import COORDINATOR, Host, hosts


@dataclass
class Networked:
    """The federation and each site's host."""

    federation: Federation
    hosts: dict[str, Host]

    def start_site(self, site: str) -> ServerProcess:
        """Start a site's worker on its host, unless it runs."""
        federation = self.federation
        own = federation.command("site", "start", "--home", str(federation.site_home(site)))
        return start_worker(
            federation.stack,
            f"site {site}",
            self.hosts[site].command(own),
            site_environment(federation.stack, site),
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a federation is made of.

    Attributes:
        rows: File of rows by site.
        holdout: The coordinator's public rows.
        policy: Text of every site's policy, the dataset still open.
        rate: Rate of every link.
    """

    rows: dict[str, Path]
    holdout: Path
    policy: str
    rate: str = "40mbit"


def demo_setting(folder: Path) -> Setting:
    """Return the demo's five sites, with room in their policies for many campaigns."""
    data = write_demo(folder)
    series = SERIES.model_copy(update={"max_steps": 500})
    policy = policy_text(epsilon=40.0, delta=1e-5, series=series)
    return Setting(rows=dict(data.sites), holdout=data.holdout, policy=policy)


@contextmanager
def networked_federation(setting: Setting) -> Iterator[Networked]:
    """Start servers, a host for every site and their workers; end and remove all afterwards."""
    sites = tuple(setting.rows)
    with (
        tempfile.TemporaryDirectory(prefix="fedloom-net-") as name,
        hosts(len(sites), rate=setting.rate) as made,
        ended_with_this_process(),
    ):
        home, folder = Path(name) / "home", Path(name) / "work"
        folder.mkdir()
        stated = Stated(gateway_listen=COORDINATOR, gateway_hosts=(COORDINATOR,))
        federation = Federation(local_stack.start(home, stated=stated), folder, sites)
        networked = Networked(federation, dict(zip(sites, made, strict=True)))
        try:
            _make_sites(federation, setting)
            _start(networked)
            yield networked
        finally:
            local_stack.stop(home)


def _make_sites(federation: Federation, setting: Setting) -> None:
    holdouts = federation.home / "holdouts"
    holdouts.mkdir(exist_ok=True)
    shutil.copy(setting.holdout, holdouts / setting.holdout.name)
    for site, file in setting.rows.items():
        own = site_home(federation.home, site).root
        own.mkdir(parents=True, exist_ok=True)
        rows = Path(f"rows{file.suffix}")
        shutil.copy(file, own / rows)
        make_local_site(federation.stack, LocalSite(site, rows, setting.policy, 64))
        federation.fedloom(
            "enrol", str(own / "enrol.json"), "--home", str(federation.home), "--yes"
        )


def _start(networked: Networked) -> None:
    federation = networked.federation
    stack = federation.stack
    register_pools(stack, sites=federation.sites)
    start_coordinator_worker(stack)
    evaluation = federation.command("evaluation", "start")
    start_worker(stack, "evaluation", evaluation, evaluation_environment(stack))
    for site in federation.sites:
        networked.start_site(site)
