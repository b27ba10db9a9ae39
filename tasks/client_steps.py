"""The steps of a round at a site: rows, gate, training, and the task that the session runs.

Nothing that an exception says leaves the site: the task returns a fixed word, whatever happened,
and the text goes to the site's own log (SOUNDNESS, rule 18).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import FedloomError, RoundError
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site, SiteWork
from fl_core.rounds.site_charge import work_out_next
from fl_core.rounds.site_consent import withhold
from fl_core.rounds.site_decision import standing
from fl_core.rounds.site_round import client_round, decline_round, require_own_plan
from fl_core.rounds.site_witness import void_idle_reserves, witness_coordinator
from fl_core.rounds.upload_time import require_present
from fl_core.updates.outbox import exclusive
from tasks.site_config import DECISIONS, SiteConfig, SiteHome, open_site
from tasks.site_decisions import Held, await_decision, decision_mark

if TYPE_CHECKING:
    from fl_core.models.loading import LoadedBase
    from fl_core.models.peft_state import AdaptedModel

MakeWork = Callable[[SiteHome, SiteConfig, Assembly], SiteWork]
Answer = Literal["uploaded", "declined", "ignored", "retry", "failed"]
Status = Literal["uploaded", "declined", "ignored", "held", "withheld"]

log = logging.getLogger(__name__)


@task(
    name="client-round",
    task_run_name="round-{plan.round:04d}",
    cache_policy=NO_CACHE,
    persist_result=False,
    log_prints=False,
)
def take_part(plan: RoundPlan, answer: Callable[[RoundPlan], Answer]) -> Answer:
    """Take part in one round and return a fixed word: all that the coordinator may know.

    Args:
        plan: The round's plan.
        answer: The session's own way to answer a plan; raises nothing.
    """
    return answer(plan)


@dataclass
class WarmModel:
    """The base model with its adapter, kept in memory between rounds and sessions."""

    loaded: dict[str, tuple["LoadedBase", "AdaptedModel"]] = field(default_factory=dict)


WARM = WarmModel()


@dataclass
class Session:
    """What one site session holds between its rounds.

    Attributes:
        home: The site's folder.
        config: Its config.
        assembly: The approved campaign's parts.
        store: The campaign's store.
        make_work: Makes the site's work.
        made: The site's work once it could be made; rows are read and judged once per session.
        is_over: Says whether the campaign run has ended; asked while an update is held.
    """

    home: SiteHome
    config: SiteConfig
    assembly: Assembly
    store: ObjectStore
    make_work: MakeWork
    made: SiteWork | None = None
    is_over: Callable[[], bool] = lambda: False

    def work(self) -> SiteWork:
        """Return the site's work, reading rows and loading the model the first time.

        Raises:
            FedloomError: As ``site_work`` does.
        """
        if self.made is None:
            self.made = self.make_work(self.home, self.config, self.assembly)
        return self.made

    def answer(self, plan: RoundPlan) -> Answer:
        """Answer one plan: an update, a refusal, or a word why neither was possible yet.

        Whatever is raised below ends here and in the site's log; ``retry`` stands for causes that
        another try can mend before the deadline. An update that is held waits here, without the
        lock; if it never leaves, the word is ``failed``, as for any other cause.
        """
        try:
            seen, word = decision_mark(self.home), self._locked_answer(plan)
            while word == "held":
                held = Held(self.assembly.campaign.id, plan, seen, self._ask_from(plan))
                ended = await_decision(self.home, self.store, held, is_over=self.is_over)
                if ended == "closed":
                    site = open_site(self.home, self.config)
                    withhold(site, self.assembly, plan, "the round went on before it was approved")
                if ended != "look":
                    return "failed"
                seen, word = decision_mark(self.home), self._locked_answer(plan)
        except Exception as error:
            log.exception("round not answered round=%d", plan.round)
            return "retry" if isinstance(error, FedloomError) and error.retryable else "failed"
        return "failed" if word == "withheld" else word

    def _ask_from(self, plan: RoundPlan) -> datetime:
        if plan.upload_at is not None:
            return plan.upload_at
        # Without a guarantee a round may close early, and no time says more than it may.
        return plan.opened if self.assembly.campaign.privacy.none is not None else plan.deadline

    def has_left(self) -> bool:
        """Say whether the site has left the campaign, so that its next answer is the last one."""
        left = standing(self.home.store(DECISIONS)).left
        return self.assembly.digest in left

    def _locked_answer(self, plan: RoundPlan) -> Status:
        # The outbox is locked, so that a zombie of this session cannot train beside it.
        with exclusive(self.home.root / "outbox.lock"):
            return self._answer(open_site(self.home, self.config), plan)

    def work_out_next(self) -> None:
        """Work out the next charge while nobody waits for it; raises nothing.

        What stands in its way stands in the way of the round too, which says so.
        """
        try:
            work_out_next(open_site(self.home, self.config), self.assembly)
        except Exception:
            log.exception("the next charge was not worked out")

    def settle(self) -> None:
        """Take back charges of closed rounds that nothing was trained for; raises nothing.

        What cannot be settled now stays charged and is tried again by the next session.
        """
        try:
            with exclusive(self.home.root / "outbox.lock"):
                site = open_site(self.home, self.config)
                void_idle_reserves(site, self.assembly, self.store)
        except Exception:
            log.exception("idle charges not settled")

    def watch_coordinator(self) -> None:
        """Copy the federation's ledger as it is now, where the coordinator charges; raises nothing.

        Each plan asks again, and there a ledger that was set back stops the site. The last round
        has no later plan, so its charge is copied when the session ends.
        """
        if self.assembly.central_noise is None:
            return
        try:
            witness_coordinator(open_site(self.home, self.config), self.assembly, self.store)
        except Exception:
            log.exception("the federation's ledger was not copied")

    def _answer(self, site: Site, plan: RoundPlan) -> Status:
        assembly, store = self.assembly, self.store
        try:
            # First, so that a plan that is not for this site learns nothing about its rows.
            require_own_plan(site, assembly, plan)
            require_present(plan, now=site.clock.now())
            outcome = client_round(site, self.work(), assembly=assembly, store=store, plan=plan)
        except RoundError as error:
            log.warning("plan ignored round=%d why=%s", plan.round, error)
            return "ignored"
        except Exception as error:
            if isinstance(error, FedloomError) and error.retryable:
                raise
            log.exception("round declined round=%d", plan.round)
            why = type(error).__name__
            outcome = decline_round(site, assembly=assembly, store=store, plan=plan, detail=why)
        log.info("round answered round=%d %s %s", plan.round, outcome.status, outcome.detail)
        return outcome.status


def site_work(home: SiteHome, config: SiteConfig, assembly: Assembly) -> SiteWork:
    """Return the site's work on its real rows with the real gate.

    Raises:
        CampaignError: The rows, the suite or the key of units cannot be read.
        ModelMismatch: The base model is absent or another one.
    """
    from fl_core.data.rows import take_rows
    from fl_core.data.units import encode_units, unit_of
    from fl_core.privacy.randomness import SecureStream
    from fl_core.training.site_work import ModelWork
    from tasks.row_gate import cached_gate, write_quarantine
    from tasks.site_rows import read_rows
    from tasks.suite_files import load_locked_suite
    from tasks.unit_key import read_unit_key

    campaign = assembly.campaign
    base, model = warm_model(assembly, config)
    suite = load_locked_suite(campaign.gate, folder=config.suites)
    rows = read_rows(home.root / config.data)
    verdict = cached_gate(
        rows, suite, task=campaign.task, store=home.store("gate"), unit=unit_of(campaign)
    )
    write_quarantine(home.root / "quarantine", rows, verdict)
    kept, key = take_rows(rows, verdict.kept), read_unit_key(home)
    encoded = encode_units(kept, campaign, base.tokenizer, key=key)
    return ModelWork(
        campaign=campaign,
        site=config.site,
        noise=assembly.noise,
        base=base,
        model=model,
        verdict=lambda: verdict.report,
        rows=lambda: encoded,
        stream=SecureStream,
    )


def warm_model(assembly: Assembly, config: SiteConfig) -> tuple["LoadedBase", "AdaptedModel"]:
    """Return the campaign's model, loading it the first time.

    Raises:
        ModelMismatch: The base model is absent or has another content hash.
    """
    import torch

    from fl_core.adapters.peft_layout import initial_state
    from fl_core.models.loading import load_base, resolve_base
    from fl_core.models.peft_state import attach

    campaign = assembly.campaign
    if assembly.digest not in WARM.loaded:
        torch.set_num_threads(config.threads)
        path = resolve_base(campaign.base_model.name, folders=config.base_models)
        base = load_base(path, campaign.task, sha256=campaign.base_model.sha256)
        state = initial_state(campaign.adapter, campaign.task)
        # One campaign at a time: the model of the last one would only hold memory.
        WARM.loaded.clear()
        WARM.loaded[assembly.digest] = (base, attach(base, campaign.adapter, campaign.task, state))
    return WARM.loaded[assembly.digest]
