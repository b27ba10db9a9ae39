"""A site in a folder with its store and witness beside it, and the commands run over it."""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from typer.testing import CliRunner
from worlds import FakeWork, campaign_of

from fl_core.artifacts.local import LocalStore
from fl_core.errors import (
    FedloomError,
)
from fl_core.privacy.policy import approve
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.site_round import client_round
from flows.cli.main import app
from tasks.client_steps import Session
from tasks.enrolment import admit, read_enrolment
from tasks.site_config import SiteHome, open_site, read_site_config

SITE = "north"


@dataclass(frozen=True)
class Ended:
    """What a command left behind: its output, and the error that `fedloom` would end with."""

    stdout: str
    stderr: str
    error: FedloomError | None


def fedloom(*words) -> Ended:
    found = CliRunner().invoke(app, [str(word) for word in words])
    error = found.exception
    if error is not None and not isinstance(error, FedloomError):
        raise error
    return Ended(found.stdout, found.stderr, error)


@dataclass
class Place:
    """A made site with the folders around it."""

    folder: Path

    @property
    def home(self) -> SiteHome:
        return SiteHome(self.folder / "site")

    @property
    def disk(self) -> Path:
        return self.folder / "other-disk" / "witness"

    def init(self, *words, home="site"):
        return fedloom(
            *("site", "init", SITE, "--data", self.folder / "rows.csv", "--epsilon", 20),
            *("--delta", 1e-5, "--store", f"file://{self.folder}/store", "--home"),
            *(self.folder / home, "--witness", self.disk, *words),
        )

    def session(self, work=None, **changes) -> Session:
        """Return a session of the site that has approved the campaign; ``changes`` are in it."""
        store = LocalStore(self.folder / "store")
        campaign = campaign_of(sites=(SITE,), **changes)
        assembly = open_campaign(store, campaign)
        admit(store, read_enrolment(self.home.enrolment))
        approve(self.home.store("approvals"), campaign, now=datetime.now(UTC))
        config = read_site_config(self.home)
        return Session(self.home, config, assembly, store, lambda *_: work)

    def plan(self, number, **changes):
        session = self.session(**changes)
        now = datetime.now(UTC)
        return open_round(session.assembly, session.store, round_number=number, now=now)

    def round(self, number, **changes):
        """Take part in a round and return the answer and how often was trained."""
        plan, session = self.plan(number, **changes), self.session(**changes)
        work = FakeWork(session.assembly.shapes(number), rng=np.random.default_rng(number))
        site = open_site(self.home, session.config)
        answer = client_round(site, work, assembly=session.assembly, store=session.store, plan=plan)
        return answer, work.trainings

    def backup(self):
        shutil.copytree(self.home.root, self.folder / "backup")

    def restore(self):
        shutil.rmtree(self.home.root)
        shutil.copytree(self.folder / "backup", self.home.root)

    def verify(self):
        found = fedloom("ledger", "--home", self.home.root, "--verify", "--json")
        return json.loads(found.stdout)["ledgers"][0], found.error
