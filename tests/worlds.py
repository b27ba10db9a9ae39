"""A small federation in memory: real ledgers, outboxes, signatures and rounds, a numpy model.

The work of a site is a fake that draws a fresh random delta at every training, so that a second
draw that leaves a site shows as other bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.privacy.federation import FederationLimits, create_federation
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.central_release import NO_FEDERATION, Coordinator
from fl_core.rounds.plan import open_campaign
from fl_core.rounds.site import Site
from fl_core.updates.outbox import Outbox
from fl_core.updates.records import GateReport, Series
from fl_core.updates.signing import generate_key, public_hex
from fl_core.updates.work import Exchange, Trained

SUITE = "5" * 64
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AFTER_DEADLINE = NOW + timedelta(days=1)
# A campaign as a person writes it: names instead of hashes, and nothing that has a default.
WRITTEN = """
id = "first"
base_model = "some-model"
sites = ["north", "south"]
max_rounds = 3
gate = "labelled-texts"
evaluation.holdout = "public"
task.labels = ["yes", "no"]
adapter.targets = ["query"]
training = { local_steps = 4, batch_size = 16, learning_rate = 1.0 }
privacy.record = { epsilon = 8, delta = 1e-5, clip_norm = 0.3, sampling_rate = 0.1 }
"""


class StandingClock:
    """A site's clock that stands at NOW, when every round of a world is opened, and never waits."""

    def now(self) -> datetime:
        """Return NOW."""
        return NOW

    def wait_until(self, moment: datetime) -> None:
        """Return at once."""


def campaign_of(sites: tuple[str, ...] = ("a", "b", "c"), **changes: object) -> Campaign:
    """Return a locked campaign of tiny shapes under RecordDp; ``changes`` replace fields."""
    fields: dict[str, object] = {
        "id": "tiny",
        "base_model": {"name": "tiny-base", "sha256": "b" * 64},
        "sites": sites,
        "max_rounds": 6,
        "task": {"labels": ("yes", "no"), "max_tokens": 8},
        "adapter": {
            "rank": 2,
            "alpha": 4,
            "targets": ("query",),
            "modules": {"layer.query": (3, 4)},
            "head_inputs": 4,
        },
        "training": {"local_steps": 8, "batch_size": 16, "learning_rate": 0.1},
        "privacy": {
            "record": {
                "epsilon": 8.0,
                "delta": 1e-5,
                "clip_norm": 0.3,
                "sampling_rate": 0.1,
                "noise_multiplier": 0.8,
            }
        },
        "gate": {"name": "tiny-suite", "sha256": SUITE},
        "evaluation": {"holdout": {"name": "tiny-holdout", "sha256": "d" * 64}},
    }
    return Campaign.model_validate(fields | changes)


NO_PRIVACY = {"none": {"reason": "made-up numbers, nothing to protect"}}


PASSED = GateReport(suite_sha256=SUITE, passed=True)


@dataclass
class FakeWork:
    """A site's work without a model: every training is a fresh draw."""

    shapes: Mapping[str, tuple[int, ...]]
    report: GateReport = PASSED
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    trainings: int = 0
    fails_with: Exception | None = None
    on_train: Callable[[], None] = lambda: None

    def gate(self) -> GateReport:
        return self.report

    def train(self, exchange: Exchange) -> Trained:  # noqa: ARG002
        self.trainings += 1
        self.on_train()
        if self.fails_with is not None:
            raise self.fails_with
        delta = {
            name: self.rng.normal(size=shape).astype(np.float32)
            for name, shape in sorted(self.shapes.items())
        }
        return Trained(delta=delta)


@dataclass
class World:
    """A campaign frozen in a store, with its sites and their own stores."""

    assembly: Assembly
    store: ObjectStore
    sites: dict[str, Site]
    works: dict[str, FakeWork]
    ledgers: dict[str, ObjectStore]
    outboxes: dict[str, ObjectStore]
    witnesses: dict[str, tuple[WitnessedStore, ...]] = field(default_factory=dict)
    client_ledgers: dict[str, ObjectStore] = field(default_factory=dict)
    coordinator: Coordinator = NO_FEDERATION


def policy_of(campaign: Campaign, site: str, **changes: object) -> SitePolicy:
    """Return a policy that allows the campaign; ``changes`` replace fields."""
    record, client = campaign.privacy.record, campaign.privacy.client
    is_local = client is not None and client.mechanism == "local_gaussian"
    fields: dict[str, object] = {
        "dataset": f"data-{site}",
        "epsilon": 8.0,
        "delta": 1e-5,
        "series": None
        if record is None
        else Series(
            noise_multiplier=record.noise_multiplier,
            sampling_rate=record.sampling_rate,
            max_steps=campaign.total_steps,
        ),
        "base_models": "*",
        "suites": "*",
        "campaigns": (campaign.digest,),
        "without_guarantee": record is None and not is_local,
        "client": {"epsilon": client.epsilon, "delta": client.delta} if is_local else None,
    }
    return SitePolicy.model_validate(fields | changes)


def coordinator_of(
    store: ObjectStore, *, epsilon: float = 50.0, delta: float = 1e-3
) -> Coordinator:
    """Return a coordinator with a new ledger of the federation in the store."""
    limits = FederationLimits(epsilon=epsilon, delta=delta)
    federation = create_federation(store, limits=limits, key=generate_key(), now=NOW)
    return Coordinator(federation)


def world_of(campaign: Campaign, **policy_changes: object) -> World:
    """Freeze a campaign in memory, enrol its sites, and open a ledger at each."""
    store = MemoryStore()
    assembly = open_campaign(store, campaign)
    coordinator = NO_FEDERATION if assembly.central_noise is None else coordinator_of(store)
    sites, works, ledgers, outboxes, witnesses = {}, {}, {}, {}, {}
    client_ledgers = {}
    for name in campaign.sites:
        key = generate_key()
        enrol(store, RosterEntry(site=name, signing_key=public_hex(key), since=NOW))
        policy = policy_of(campaign, name, **policy_changes)
        ledgers[name], outboxes[name] = MemoryStore(), MemoryStore()
        Ledger.create(ledgers[name], dataset=policy.dataset, unit=policy.unit, key=key, now=NOW)
        witnesses[name] = (
            WitnessedStore("coordinator", store, is_own=False),
            WitnessedStore("disk", MemoryStore(), is_own=True),
        )
        own: dict[str, object] = {"witnesses": witnesses[name]}
        if policy.client is not None:
            client_ledgers[name] = own["client_ledger_store"] = MemoryStore()
            Ledger.create(client_ledgers[name], dataset=policy.dataset, unit=SITE, key=key, now=NOW)
        sites[name] = open_site(name, key, policy, ledgers[name], outboxes[name], **own)
        works[name] = FakeWork(assembly.shapes(1), rng=np.random.default_rng(len(works)))
    return World(
        assembly, store, sites, works, ledgers, outboxes, witnesses, client_ledgers, coordinator
    )


def open_site(
    name,
    key,
    policy,
    ledger_store,
    outbox_store,
    *,
    witnesses=(),
    client_ledger_store=None,
    copies=None,
) -> Site:
    """Return a site over the given stores, as a process that has just started would.

    Without ``witnesses`` it has new ones, which know nothing of an earlier ledger.
    """
    fresh = tuple(WitnessedStore(f"fresh-{n}", MemoryStore(), is_own=True) for n in (1, 2))

    def opened(store, unit):
        return Ledger(store, dataset=policy.dataset, unit=unit, key=key, clock=lambda: NOW)

    return Site(
        name=name,
        key=key,
        policy=policy,
        ledger=opened(ledger_store, policy.unit),
        outbox=Outbox(outbox_store),
        witnesses=witnesses or fresh,
        clock=StandingClock(),
        client_ledger=None if client_ledger_store is None else opened(client_ledger_store, SITE),
        federation_copies=MemoryStore() if copies is None else copies,
    )
