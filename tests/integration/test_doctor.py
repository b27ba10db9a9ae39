"""The doctor at a site in front of a real gateway: not yet enrolled, enrolled, revoked.

The gateway is `fedloom gateway start` in a process of its own over a store in a folder; Prefect is
not asked here.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_core.artifacts.content_hash import folder_sha256
from fl_core.artifacts.local import LocalStore
from fl_core.campaign.roster import revoke
from fl_core.privacy.policy import approve
from fl_core.rounds.plan import open_campaign
from flows.processes import free_port, is_port_free
from tasks.enrolment import admit, read_enrolment
from tasks.site_config import SiteHome
from tasks.suite_files import suite_sha256
from tests.worlds import campaign_of

FEDLOOM = (sys.executable, "-m", "flows.cli.main")


@dataclass
class Site:
    """A site with the gateway's invite."""

    name: str
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / self.name

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.folder / "store")

    def enrol(self) -> None:
        admit(self.store, read_enrolment(self.home / "enrol.json"))

    def fedloom(self, *words):
        return subprocess.run(
            [*FEDLOOM, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=self.folder,
            env=environment(),
        )

    def doctor(self):
        """Return the doctor's lines by name, once exit code and report agree."""
        ended = self.fedloom("doctor", "--site-home", self.home, "--json")
        report = json.loads(ended.stdout)
        assert ended.returncode == (0 if report["healthy"] else 1), ended.stderr
        return {check["name"]: check for check in report["checks"]}

    def failing(self):
        return {name: check for name, check in self.doctor().items() if check["verdict"] == "fail"}

    def requests(self):
        """Return what the gateway's record holds of this site: path and status."""
        record = self.folder / "home" / "gateway" / "record.jsonl"
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        return [(line["path"], line["status"]) for line in lines if line.get("site") == self.name]


def environment(**more: str) -> dict[str, str]:
    own = ("PREFECT", "MLFLOW", "FEDLOOM")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | more


@pytest.fixture(scope="module")
def made_site(tmp_path_factory):
    """A function that makes a site of a gateway that runs."""
    folder, port = tmp_path_factory.mktemp("doctor"), free_port()
    (folder / "rows.csv").write_text("text,label\nthe pump leaks,yes\nall is well,no\n")
    words = ("gateway", "start", "--home", "home", "--url", f"https://127.0.0.1:{port}")
    gateway = subprocess.Popen(
        [*FEDLOOM, *words],
        cwd=folder,
        env=environment(
            FEDLOOM_STORE=f"file://{folder}/store", PREFECT_API_URL="http://127.0.0.1:9/api"
        ),
        stderr=subprocess.PIPE,
    )

    def make(name: str) -> Site:
        site = Site(name, folder)
        made = site.fedloom(
            *("site", "init", name, "--gateway", "home/gateway/invite.json"),
            *("--data", "rows.csv", "--epsilon", 8, "--delta", 1e-5, "--home", site.home),
            *("--witness", folder / "other-disk"),
        )
        assert made.returncode == 0, made.stderr
        return site

    try:
        deadline = time.monotonic() + 60
        while is_port_free(port):
            assert gateway.poll() is None, gateway.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield make
    finally:
        gateway.terminate()
        gateway.wait(timeout=30)


def test_site_that_nobody_enrolled_is_told_what_to_send(made_site):
    failing = made_site("stranger").failing()

    assert list(failing) == ["gateway"]
    assert "does not know this site's certificate" in failing["gateway"]["found"]
    assert "enrol.json" in failing["gateway"]["remedy"]


def approved(site: Site) -> None:
    """Freeze a campaign in the store and approve it at the site."""
    model = site.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w": np.zeros((8, 8), np.float32)}, model / "model.safetensors")
    campaign = campaign_of(
        sites=(site.name,),
        base_model={"name": "tiny-base", "sha256": folder_sha256(model)},
        gate={"name": "labelled-texts", "sha256": suite_sha256("labelled-texts")},
    )
    open_campaign(site.store, campaign)
    approve(SiteHome(site.home).store("approvals"), campaign, now=datetime.now(UTC))
    config = site.home / "site.toml"
    config.write_text(config.read_text() + f'\n"tiny-base" = "{model}"\n')


def test_enrolled_site_reads_what_is_for_all_and_is_refused_what_is_anothers(made_site):
    site = made_site("north")
    site.enrol()
    approved(site)

    checks = site.doctor()

    # The test has one disk for ledger and witness.
    verdicts = {name: check["verdict"] for name, check in checks.items()}
    warned = {name for name, verdict in verdicts.items() if verdict != "ok"}
    assert warned == {f"place of witness folder {site.folder}/other-disk"}
    assert verdicts["gateway's certificate"] == verdicts["clock"] == "ok"
    # The approved campaign came through the gateway.
    assert verdicts["rows for tiny"] == verdicts["base model tiny-base"] == "ok"
    assert checks["enrolment and versions"]["found"].startswith("known as north")
    assert checks["witness coordinator, unit row"]["found"] == "agrees"
    foreign = "/store/objects/campaigns/doctor/rounds/0001/updates/not-north/manifest.json"
    wait_until_recorded(site, foreign)
    assert (foreign, 403) in site.requests()


def wait_until_recorded(site, path) -> None:
    # The record is flushed every second.
    deadline = time.monotonic() + 30
    while path not in {found for found, _ in site.requests()}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_revoked_site_is_told_so(made_site):
    site = made_site("leaver")
    site.enrol()
    assert not site.failing()
    revoke(site.store, "leaver", now=datetime.now(UTC), reason="left")

    failing = site.failing()

    assert list(failing) == ["enrolment and versions"]
    assert "revoked" in failing["enrolment and versions"]["found"]


def test_invite_of_another_gateway_is_found_before_the_site_shows_who_it_is(made_site):
    site = made_site("misled")
    site.enrol()
    own = (site.home / "tls.crt").read_text()
    (site.home / "gateway.crt").write_text(own)

    failing = site.failing()

    assert list(failing) == ["gateway's certificate"]
    assert "by voice" in failing["gateway's certificate"]["remedy"]
    assert site.requests() == []
