"""A site and an evaluation that do nothing: what is left is the round itself.

Verifying, charging, signing, storing and waking are the real thing; only training and evaluation
return at once, and nothing imports torch.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prefect import flow

from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.assembly import Assembly
from fl_core.rounds.plan import read_assembly, read_outcome
from fl_core.rounds.site import SiteWork
from fl_core.updates.records import Evaluation, GateReport
from fl_core.updates.work import Exchange, Trained

if TYPE_CHECKING:
    from flows.way_out import WayOut

HOME = "FEDLOOM_SITE_HOME"


@dataclass(frozen=True, slots=True)
class NoOpWork:
    """Returns zeros of the right shapes."""

    assembly: Assembly

    def gate(self) -> GateReport:
        return GateReport(suite_sha256=str(self.assembly.campaign.gate.sha256), passed=True)

    def train(self, exchange: Exchange) -> Trained:
        shapes = self.assembly.shapes(exchange.round_number)
        return Trained(delta={n: np.zeros(s, dtype=np.float32) for n, s in shapes.items()})


@flow(name="site-session", flow_run_name="{site}", persist_result=False)
def site_session(campaign_id: str, run: str, site: str) -> str:
    from tasks import session_steps
    from tasks.session_steps import SessionRequest
    from tasks.site_config import SiteHome, read_site_config

    home = SiteHome(Path(os.environ[HOME]))
    request = SessionRequest(campaign_id, run, home, read_site_config(home))
    assert request.config.site == site
    return session_steps.serve(request, make_work=make_work)


def make_work(_home: object, _config: object, assembly: Assembly) -> SiteWork:
    return NoOpWork(assembly)


@flow(name="evaluate-release", persist_result=False)
def evaluate_release(campaign_id: str, round_number: int) -> None:
    from tasks.settings import open_store, read_settings

    store = open_store(read_settings())
    outcome = read_outcome(store, campaign_id, round_number)
    holdout = read_assembly(store, campaign_id).campaign.evaluation.holdout
    assert outcome is not None
    evaluation = Evaluation(
        adapter_sha256=str(outcome.result_hash),
        holdout_sha256=str(holdout.sha256),
        examples=1,
        loss=1.0,
        accuracy=0.5,
        macro_f1=0.5,
    )
    write_document(store, keys.evaluation(campaign_id, round_number), evaluation)


def main() -> None:
    """Serve a pool: `python -m benchmarks.noop_session POOL FLOW`."""
    from flows.way_out import open_way_out
    from tasks.gateway_access import SiteDoor
    from tasks.site_config import SiteHome, read_site_config

    pool, flow_name = sys.argv[1:]
    if HOME not in os.environ:
        serve(pool, flow_name, name=pool)
        return
    home = Path(os.environ[HOME])
    config = read_site_config(SiteHome(home))
    assert config.gateway is not None
    door = SiteDoor(site=config.site, home=home, access=config.gateway)
    with open_way_out(door, pool=pool) as way:
        serve(pool, flow_name, name=config.site, way=way)


def serve(pool: str, flow_name: str, *, name: str, way: "WayOut | None" = None) -> None:
    """Run a worker on a pool, behind the gateway where ``way`` says so."""
    from flows.site_worker import run_worker

    function = {"site-session": "site_session", "evaluate-release": "evaluate_release"}[flow_name]
    run_worker(
        pool=pool,
        allowed={flow_name: f"benchmarks.noop_session.{function}"},
        preload=None,
        name=name,
        api_logging=False,
        way=way,
    )


if __name__ == "__main__":
    main()
