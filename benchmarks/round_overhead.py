"""What a round costs besides training: dispatch to outcome with a no-op training step.

    python -m benchmarks.round_overhead --sites 2 5 --rounds 20

Servers are real (PostgreSQL, Prefect, S3, MLflow), sites are processes without torch, the update
has the shapes of the demo's adapter. Printed are medians in seconds: the round (from plan to
outcome, with verifying, charging, signing and storing), what follows it (evaluation by a no-op and
MLflow), and the site's memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.campaign.campaign import Campaign
from fl_core.privacy.policy import Series
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import open_campaign
from flows.local_sites import LocalSite, make_local_site, site_home
from flows.local_stack import Stack, start, stop
from flows.local_workers import (
    environment,
    register_pools,
    site_environment,
    start_coordinator_worker,
    start_worker,
)
from flows.processes import ended_with_this_process

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    f"encoder.layer.{n}.attention.self.{part}": (384, 384)
    for n in range(6)
    for part in ("query", "value")
}


def campaign_of(sites: list[str], rounds: int) -> Campaign:
    """A locked campaign with the demo's shapes and names that nothing looks up."""
    return Campaign.model_validate(
        {
            "id": "overhead",
            "base_model": {"name": "none", "sha256": "b" * 64},
            "sites": sites,
            "max_rounds": rounds,
            "task": {"labels": [str(n) for n in range(7)], "max_tokens": 24},
            "adapter": {
                "rank": 4,
                "alpha": 8,
                "targets": ["query", "value"],
                "modules": MODULES,
                "head_inputs": 384,
            },
            "training": {"local_steps": 1, "batch_size": 16, "learning_rate": 1.0},
            "privacy": {
                "record": {
                    "epsilon": 50,
                    "delta": 1e-5,
                    "clip_norm": 0.3,
                    "sampling_rate": 0.1,
                    "noise_multiplier": 0.8,
                }
            },
            "gate": {"name": "none", "sha256": "c" * 64},
            "evaluation": {"holdout": {"name": "none", "sha256": "d" * 64}},
        }
    )


def make_sites(stack: Stack, campaign: Campaign) -> None:
    """Make, enrol and approve the sites."""
    from datetime import UTC, datetime

    from fl_core.privacy.policy import approve
    from tasks.enrolment import admit
    from tasks.settings import open_store, read_settings

    os.environ.update(environment(stack))
    store = open_store(read_settings())
    series = Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=1000)
    for site in campaign.sites:
        policy = policy_text(epsilon=50, delta=1e-5, series=series)
        admit(store, make_local_site(stack, LocalSite(site, Path("none.csv"), policy)))
        approve(site_home(stack.home, site).store("approvals"), campaign, now=datetime.now(UTC))
    open_campaign(store, campaign)


def start_workers(stack: Stack, sites: tuple[str, ...]) -> list[int]:
    """Start coordinator, evaluation and sites; return the sites' pids."""
    register_pools(stack, sites=sites)
    start_coordinator_worker(stack)
    noop = [sys.executable, "-m", "benchmarks.noop_session"]
    path = {"PYTHONPATH": str(ROOT)}
    start_worker(
        stack, "evaluation", [*noop, "evaluation", "evaluate-release"], environment(stack) | path
    )
    pids = []
    for site in sites:
        env = site_environment(stack, site) | path
        env["FEDLOOM_SITE_HOME"] = str(site_home(stack.home, site).root)
        worker = start_worker(stack, f"site {site}", [*noop, f"site-{site}", "site-session"], env)
        pids.append(worker.pid)
    return pids


def measure(n_sites: int, rounds: int) -> dict[str, Any]:
    """Run one campaign and return its figures."""
    sites = [f"s{n}" for n in range(n_sites)]
    campaign = campaign_of(sites, rounds)
    with (
        tempfile.TemporaryDirectory(prefix="fedloom-bench-") as name,
        ended_with_this_process(),
    ):
        home = Path(name)
        stack = start(home)
        try:
            make_sites(stack, campaign)
            pids = start_workers(stack, campaign.sites)
            return _run(campaign, pids) | {"sites": n_sites}
        finally:
            stop(home)


def _run(campaign: Campaign, pids: list[int]) -> dict[str, Any]:
    from flows.cli.campaigns import follow
    from tasks.settings import open_store, read_settings

    status = follow(campaign.id, {"campaign_id": campaign.id})
    store = open_store(read_settings())
    plans = [
        read_document(store, keys.plan(campaign.id, n), RoundPlan)
        for n in range(1, campaign.max_rounds + 1)
    ]
    # The first round waits for the sessions to start.
    closed = [item.seconds for item in status.rounds if item.seconds is not None]
    seconds = closed[1:]
    after = [
        (later.opened - plan.opened).total_seconds() - spent
        for plan, later, spent in zip(plans, plans[1:], closed, strict=False)
    ][1:]
    tree = [
        sum(p.memory_info().rss for p in [psutil.Process(pid), *psutil.Process(pid).children()])
        for pid in pids
    ]
    return {
        "first_round_s": round(closed[0], 2),
        "round_s": round(statistics.median(seconds), 3),
        "round_max_s": round(max(seconds), 3),
        "evaluation_and_mlflow_s": round(statistics.median(after), 3),
        "site_memory_mb": round(statistics.median(tree) / 1e6),
    }


def main() -> None:
    """Measure every number of sites and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    if len(chosen.sites) == 1:
        print(json.dumps(measure(chosen.sites[0], chosen.rounds)), flush=True)
        return
    for n_sites in chosen.sites:
        # A process of its own: Prefect reads the address of its server once.
        command = [sys.executable, "-m", "benchmarks.round_overhead", "--sites", str(n_sites)]
        subprocess.run([*command, "--rounds", str(chosen.rounds)], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
