"""The demo, step by step: a whole federation on one machine, with real servers and real rows.

Five sites run as processes of their own, each with its folder, keys, policy, ledger and outbox, and
reach the coordinator through its gateway only, by outgoing TLS. What they do is what sites on other
machines do.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import read_campaign
from fl_core.errors import ServerFailed
from fl_core.updates.records import Series
from flows.baselines import CAMPAIGN_FILE, POOLED
from flows.demo_data import DECLARED, write_demo
from flows.local_stack import Stack
from flows.local_workers import environment

# SOUNDNESS, rule 15: one series of 96 steps at this noise ends at epsilon 10.77 by PLD.
EPSILON, DELTA = 11.0, 1e-5
SERIES = Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=96)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one baseline came to on the public holdout."""

    accuracy: float
    macro_f1: float


def demo_campaign() -> Campaign:
    """Return the demo's campaign as it is written."""
    return read_campaign(CAMPAIGN_FILE)


def make_sites(stack: Stack) -> None:
    """Make the five sites with their rows; a site that exists keeps its ledger and policy."""
    from fl_core.privacy.policy_template import policy_text
    from flows.home_upgrade import take_sites_through_gateway
    from flows.local_sites import LocalSite, made_sites, make_local_site

    take_sites_through_gateway(stack)
    campaign = demo_campaign()
    data = write_demo(stack.home)
    for site in campaign.sites:
        if site in made_sites(stack.home):
            continue
        declared = DECLARED[site]
        policy = policy_text(epsilon=EPSILON, delta=DELTA, series=SERIES)
        make_local_site(stack, LocalSite(site, Path(data.sites[site].name), policy, declared))


def admit_sites(stack: Stack) -> None:
    """Enrol the five sites at the coordinator."""
    from flows.local_sites import site_home
    from tasks.enrolment import admit, read_enrolment
    from tasks.settings import open_store, read_settings

    os.environ.update(environment(stack))
    store = open_store(read_settings())
    for site in demo_campaign().sites:
        admit(store, read_enrolment(site_home(stack.home, site).enrolment))


def approve_at_sites(stack: Stack, campaign: Campaign) -> None:
    """Do at every site what its operator does: read the frozen campaign, and pin its digest."""
    from datetime import UTC, datetime

    from fl_core.privacy.policy import approve
    from flows.local_sites import site_home

    for site in campaign.sites:
        home = site_home(stack.home, site)
        approve(home.store("approvals"), campaign, now=datetime.now(UTC))


def run_baselines(on_line: Callable[[dict[str, object]], None]) -> dict[str, Baseline]:
    """Run each site alone and all rows pooled, in two processes beside each other.

    Args:
        on_line: Told every finished round of every baseline.

    Raises:
        ServerFailed: A baseline process ended with an error.
    """
    found: dict[str, Baseline] = {}

    def take(line: dict[str, object]) -> None:
        found[str(line["name"])] = Baseline(
            accuracy=float(str(line["accuracy"])), macro_f1=float(str(line["macro_f1"]))
        )
        on_line(line)

    with tempfile.TemporaryDirectory(prefix="fedloom-baselines-") as name:
        write_demo(Path(name))
        groups = [[POOLED], list(demo_campaign().sites)]
        runs = [_start_baselines(Path(name), group) for group in groups]
        threads = [threading.Thread(target=_read_lines, args=(run, take)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for run in runs:
            if run.wait() != 0:
                raise ServerFailed(f"a baseline ended with status {run.returncode}")
    return found


def _start_baselines(folder: Path, names: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.baselines", str(folder), *names],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def _read_lines(run: "subprocess.Popen[str]", take: Callable[[dict[str, object]], None]) -> None:
    for line in run.stdout or []:
        take(json.loads(line))
