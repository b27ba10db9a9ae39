"""Whole campaigns in one process, without a server: the tests' and the researcher's way in.

The rounds are the same code over a store in memory, with the same checks, charges and signatures;
only rows, verdicts and the noise stream are handed in. A simulation makes ledgers of its own that
end with it, so it promises nothing to anybody: "simulation, no guarantee" (SOUNDNESS, rule 7).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from fl_core.adapters.peft_layout import initial_state
from fl_core.artifacts import keys
from fl_core.artifacts.documents import write_document
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ROW, SITE, RecordDp
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.data.prompts import EncodedRows
from fl_core.errors import TrainingError
from fl_core.evaluation.evaluate import evaluate
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import AdaptedModel, attach, load_state
from fl_core.privacy.calibration import gaussian_epsilon
from fl_core.privacy.federation import Federation, FederationLimits, create_federation
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy_documents import ClientLimit, SitePolicy
from fl_core.privacy.randomness import NoiseStream, SecureStream, SeededStream
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.adapters import read_state
from fl_core.rounds.central_release import Coordinator
from fl_core.rounds.charging import charge_round
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Outcome, RoundPlan
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.release import release_round, skip_round
from fl_core.rounds.site import Site
from fl_core.rounds.site_round import client_round
from fl_core.rounds.status import RoundStatus, next_round, round_status
from fl_core.rounds.upload_time import PLAN_CLOCK
from fl_core.training.site_work import ModelWork
from fl_core.updates.outbox import Outbox
from fl_core.updates.records import GateReport, Series
from fl_core.updates.signing import generate_key, public_hex

LABEL = "simulation, no guarantee"
_ROW_DELTA = 1e-5


@dataclass(frozen=True, slots=True)
class SimulatedSite:
    """One site of a simulation.

    Attributes:
        rows: Rows that passed the gate, encoded.
        gate: The gate's report on them.
        declared_examples: Public size for ``weights = "declared"``, or None.
    """

    rows: EncodedRows
    gate: GateReport
    declared_examples: int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a simulation runs on.

    Attributes:
        campaign: The locked campaign.
        base: Its base model.
        sites: Every site of the campaign by name.
        holdout: The public holdout, encoded.
        seed: None draws noise as a real site does; a number repeats a run and voids any claim.
    """

    campaign: Campaign
    base: LoadedBase
    sites: Mapping[str, SimulatedSite]
    holdout: EncodedRows
    seed: int | None = None


def simulate(setting: Setting, *, store: ObjectStore | None = None) -> Iterator[RoundStatus]:
    """Run a campaign to its end, yielding every round as it closes.

    Args:
        setting: What to run.
        store: Where the campaign's objects go; a fresh one in memory if left out.

    Raises:
        CampaignError: The campaign is not locked, or its parts do not fit.
        TrainingError: Training diverged.
    """
    target: ObjectStore = MemoryStore() if store is None else store
    assembly = open_campaign(target, setting.campaign)
    runner = _Runner(setting, assembly, target)
    while isinstance(number := runner.next_round(), int):
        outcome = runner.run_round(number)
        yield round_status(assembly, target, number)
        if outcome.status != "released":
            return


class _Runner:
    """Holds the one model that all simulated sites train in turn."""

    def __init__(self, setting: Setting, assembly: Assembly, store: ObjectStore) -> None:
        self._setting, self._assembly, self._store = setting, assembly, store
        campaign = setting.campaign
        self._model: AdaptedModel = attach(
            setting.base,
            campaign.adapter,
            campaign.task,
            initial_state(campaign.adapter, campaign.task),
        )
        self._sites = {name: self._enrolled(name) for name in campaign.sites}
        self._coordinator = Coordinator(_federation(campaign, store), self._stream)
        self._draws = 0

    def next_round(self) -> int | str:
        federation = self._coordinator.federation
        return next_round(self._assembly, self._store, federation=federation)

    def run_round(self, number: int) -> Outcome:
        assembly, store = self._assembly, self._store
        plan = open_round(assembly, store, round_number=number, now=_now())
        for name in plan.cohort:
            client_round(
                self._sites[name], self._work(name), assembly=assembly, store=store, plan=plan
            )
        answers = {
            name: answer
            for name in plan.cohort
            if (answer := examine_site(assembly, store, plan, site=name)) is not None
        }
        collected = close_collection(assembly, store, plan, answers=answers, now=plan.deadline)
        if collected is None or not collected.has_quorum:
            return skip_round(assembly, store, plan, reason="too few updates", now=_now())
        own = self._coordinator
        charge = charge_round(assembly, store, plan, collected=collected, coordinator=own)
        outcome = release_round(
            assembly,
            store,
            plan,
            collected=collected,
            charge=charge,
            now=_now(),
            coordinator=own,
        )
        if outcome.status == "released":
            self._evaluate(plan, outcome)
        return outcome

    def _evaluate(self, plan: RoundPlan, outcome: Outcome) -> None:
        campaign = self._setting.campaign
        sha256 = str(outcome.result_hash)
        load_state(self._model, read_state(self._store, campaign, sha256))
        evaluation = evaluate(
            self._model,
            self._setting.holdout,
            campaign.task,
            adapter_sha256=sha256,
            holdout_sha256=str(campaign.evaluation.holdout.sha256),
        )
        if evaluation.loss is None:
            raise TrainingError(
                f"the loss on the holdout is not finite after round {plan.round}; training "
                "diverged, lower training.learning_rate"
            )
        write_document(self._store, keys.evaluation(campaign.id, plan.round), evaluation)

    def _enrolled(self, name: str) -> Site:
        campaign, key = self._setting.campaign, generate_key()
        declared = self._setting.sites[name].declared_examples
        enrol(
            self._store,
            RosterEntry(
                site=name,
                signing_key=public_hex(key),
                declared_examples=declared,
                since=_now(),
            ),
        )
        policy = _open_policy(campaign, self._assembly.digest, dataset=f"simulated-{name}")
        ledger = Ledger.create(
            MemoryStore(), dataset=policy.dataset, unit=policy.unit, key=key, now=_now()
        )
        whole = None
        if policy.client is not None:
            whole = Ledger.create(
                MemoryStore(), dataset=policy.dataset, unit=SITE, key=key, now=_now()
            )
        return Site(
            name=name,
            key=key,
            policy=policy,
            ledger=ledger,
            outbox=Outbox(MemoryStore()),
            witnesses=_witnesses(),
            client_ledger=whole,
            clock=PLAN_CLOCK,
            federation_copies=MemoryStore(),
            streams=self._stream,
        )

    def _work(self, name: str) -> ModelWork:
        simulated = self._setting.sites[name]
        return ModelWork(
            campaign=self._setting.campaign,
            site=name,
            noise=self._assembly.noise,
            base=self._setting.base,
            model=self._model,
            verdict=lambda: simulated.gate,
            rows=lambda: simulated.rows,
            stream=self._stream,
        )

    def _stream(self) -> NoiseStream:
        if self._setting.seed is None:
            return SecureStream()
        self._draws += 1
        return SeededStream(self._setting.seed * 1_000_003 + self._draws)


def _open_policy(campaign: Campaign, digest: str, *, dataset: str) -> SitePolicy:
    record, client = campaign.privacy.record, campaign.privacy.client
    is_local = client is not None and client.mechanism == "local_gaussian"
    return SitePolicy(
        dataset=dataset,
        unit=ROW if record is None else record.unit,
        max_rows_per_unit=1 if record is None else record.max_rows_per_unit,
        epsilon=_row_limit(campaign) if record is None else record.epsilon,
        delta=_ROW_DELTA if record is None else record.delta,
        series=None if record is None else _whole_series(campaign, record),
        base_models=("*",),
        suites=("*",),
        campaigns=(digest,),
        without_guarantee=record is None and not is_local,
        client=ClientLimit(epsilon=client.epsilon, delta=client.delta)
        if client is not None and is_local
        else None,
    )


def _row_limit(campaign: Campaign) -> float:
    """Return a limit that all rounds of noise on whole updates fit in, whoever decides."""
    client = campaign.privacy.client
    if client is None or client.noise_multiplier is None:
        return 1.0
    row = client.noise_multiplier / 2 / math.sqrt(campaign.max_rounds)
    return 1 + 2 * gaussian_epsilon(sigma=row, sensitivity=1.0, delta=_ROW_DELTA)


def _federation(campaign: Campaign, store: ObjectStore) -> Federation | None:
    client = campaign.privacy.client
    if client is None or client.mechanism == "local_gaussian":
        return None
    limits = FederationLimits(epsilon=client.epsilon, delta=client.delta)
    return create_federation(store, limits=limits, key=generate_key(), now=_now())


def _witnesses() -> tuple[WitnessedStore, ...]:
    # They end with the simulation, as its ledgers do; the rounds ask for them all the same.
    return tuple(WitnessedStore(f"memory-{n}", MemoryStore(), is_own=True) for n in (1, 2))


def _whole_series(campaign: Campaign, record: RecordDp) -> Series | None:
    if record.noise_multiplier is None:
        return None
    return Series(
        noise_multiplier=record.noise_multiplier,
        sampling_rate=record.sampling_rate,
        max_steps=campaign.total_steps,
    )


def _now() -> datetime:
    return datetime.now(UTC)
