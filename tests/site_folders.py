"""One site in a folder of its own, as `fedloom site init` makes it, in a campaign of a local store.

The session is the product's own, with ledger, outbox, witnesses and decisions on the disk; only the
work on rows is that of ``tests.worlds``.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.privacy.policy import approve
from fl_core.privacy.policy_documents import CoordinatorWitness, FolderWitness
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.updates.records import Series
from flows.gateway.files import prepared_invite
from tasks.client_steps import Answer, Session
from tasks.enrolment import NewSite, admit, make_site
from tasks.invite import accept_invite
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, site_settings
from tests.integration.site_gateway import Gateway
from tests.worlds import FakeWork, campaign_of

SITE = "a"
SERIES = Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=48)


@dataclass
class SiteFolder:
    """A site's folder, its session, and the campaigns' store as the coordinator has it."""

    home: SiteHome
    config: SiteConfig
    store: LocalStore
    assembly: Assembly
    work: FakeWork

    @property
    def reached(self) -> ObjectStore:
        """The campaigns' store as the site reaches it."""
        return open_store(site_settings(self.home, self.config))

    @property
    def session(self) -> Session:
        """The session of a process that has just started."""
        return Session(self.home, self.config, self.assembly, self.reached, lambda *_: self.work)

    def plan(self, number: int = 1) -> RoundPlan:
        return open_round(self.assembly, self.store, round_number=number, now=datetime.now(UTC))

    def answer(self, number: int = 1) -> Answer:
        return self.session.answer(self.plan(number))

    def left(self, number: int = 1) -> list[str]:
        """Return the names of what a round put into the store."""
        prefix = keys.update_prefix(self.assembly.campaign.id, number, SITE)
        return [key.removeprefix(prefix) for key in self.store.list(prefix)]

    def set_policy(self, old: str, new: str) -> None:
        """Change the policy as its owner would, in an editor."""
        text = self.home.policy.read_text(encoding="utf-8")
        assert text.count(old) == 1
        self.home.policy.write_text(text.replace(old, new), encoding="utf-8")

    def hold(self) -> None:
        self.set_policy("\nhold = false\n", "\nhold = true\n")


def site_folder(
    folder: Path, campaign: Campaign | None = None, *, gateway: Gateway | None = None
) -> SiteFolder:
    """Make a site, enrol it, freeze a campaign and approve it; behind a gateway if one is given."""
    asked = campaign_of(sites=(SITE,)) if campaign is None else campaign
    home = SiteHome(folder / "site")
    store = LocalStore(folder / "store") if gateway is None else gateway.store
    config = SiteConfig.model_validate(
        {"site": SITE, "data": "rows.csv", **_way_in(folder, home, gateway)}
    )
    witnesses = (CoordinatorWitness(), FolderWitness(path=folder / "witness"))
    policy = policy_text(epsilon=8.0, delta=1e-5, series=SERIES, witnesses=witnesses)
    admit(store, make_site(home, NewSite(config, policy)))
    assembly = open_campaign(store, asked)
    approve(home.store("approvals"), asked, now=datetime.now(UTC))
    return SiteFolder(home, config, store, assembly, FakeWork(assembly.shapes(1)))


def _way_in(folder: Path, home: SiteHome, gateway: Gateway | None) -> dict[str, object]:
    if gateway is None:
        store = {"url": f"file://{folder}/store"}
        return {"prefect_api_url": "http://127.0.0.1:1/api", "store": store}
    invite = prepared_invite(gateway.folder / "gateway", urls=[gateway.url])
    return {"gateway": accept_invite(invite, home.root).model_dump()}
