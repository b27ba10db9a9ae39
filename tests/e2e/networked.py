"""A federation whose five sites are hosts of their own and reach the gateway only."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_core.privacy.policy_template import policy_text
from flows import local_stack
from flows.demo import SERIES
from flows.demo_data import SITES, write_demo
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


@contextmanager
def networked_federation(*, rate: str = "40mbit") -> Iterator[Networked]:
    """Start servers, five hosts and their workers; stop and remove everything at the end."""
    sites = tuple(SITES)
    with (
        tempfile.TemporaryDirectory(prefix="fedloom-net-") as name,
        hosts(len(sites), rate=rate) as made,
        ended_with_this_process(),
    ):
        home, folder = Path(name) / "home", Path(name) / "work"
        folder.mkdir()
        stated = Stated(gateway_listen=COORDINATOR, gateway_hosts=(COORDINATOR,))
        federation = Federation(local_stack.start(home, stated=stated), folder, sites)
        networked = Networked(federation, dict(zip(sites, made, strict=True)))
        try:
            _make_sites(federation)
            _start(networked)
            yield networked
        finally:
            local_stack.stop(home)


def _make_sites(federation: Federation) -> None:
    data = write_demo(federation.folder / "data")
    holdouts = federation.home / "holdouts"
    holdouts.mkdir(exist_ok=True)
    shutil.copy(data.holdout, holdouts / data.holdout.name)
    series = SERIES.model_copy(update={"max_steps": 500})
    policy = policy_text(epsilon=40.0, delta=1e-5, series=series)
    for site in federation.sites:
        own = site_home(federation.home, site).root
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.sites[site], own / "rows.csv")
        make_local_site(federation.stack, LocalSite(site, Path("rows.csv"), policy, 64))
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
