"""The coordinator's steps of a round, one task each, over the store.

Tasks take ids and small documents and return small documents; the tensors stay in the store. Every
step may run twice: it returns what the first run has written. A step that trying again cannot mend
closes its round as failed before its run fails, so that the next run goes on with the next round.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import ServerFailed, StoreUnavailable
from fl_core.rounds import charging, closing, collection, plan, release
from fl_core.rounds.central_release import Coordinator
from fl_core.rounds.documents import (
    Collected,
    Outcome,
    RoundCharge,
    RoundChoice,
    RoundPlan,
    SiteAnswer,
)
from tasks import reports
from tasks.federation import open_coordinator
from tasks.settings import open_store, read_settings

POLL_S = 0.1
# Sites that have not answered by then train for long; nobody notices half a second.
LATER_POLL_S = 0.5
EAGER_S = 30.0
LOOK_AFTER_S = 3.0
# A page that is drawn more often helps nobody, and each drawing holds the round up.
SHOWN_EVERY_S = 1.0

LookAfter = Callable[[], Mapping[str, str]]


@task(name="open-round", cache_policy=NO_CACHE, persist_result=False)
def open_round(campaign_id: str, round_number: int, choice: RoundChoice) -> RoundPlan:
    """Return the round's plan, drawing the cohort if there is none."""
    store = open_store(read_settings())
    assembly = plan.read_assembly(store, campaign_id)
    opened = plan.open_round(assembly, store, round_number=round_number, now=_now(), choice=choice)
    get_run_logger().info(
        "round open round=%d asked=%d deadline=%s grace_s=%s",
        opened.round,
        len(opened.cohort),
        f"{opened.deadline:%Y-%m-%dT%H:%M:%SZ}",
        "none" if opened.grace_s is None else f"{opened.grace_s:g}",
    )
    return opened


@task(name="collect-updates", cache_policy=NO_CACHE, persist_result=False)
def collect_updates(campaign_id: str, round_plan: RoundPlan, look_after: LookAfter) -> Collected:
    """Wait for the cohort's answers, check each, and freeze the list.

    Args:
        campaign_id: The campaign.
        round_plan: The round's plan.
        look_after: Called every few seconds while sites are due; starts lost sessions again and
            returns in a few words what each site's session looks like.

    Raises:
        RunCancelled: A person cancelled the run; the round stays open.
    """
    store = open_store(read_settings())
    assembly = plan.read_assembly(store, campaign_id)
    collected = _Collecting(assembly, store, round_plan, look_after).wait()
    due = [s for s, answer in collected.answers.items() if answer.status == "missing"]
    get_run_logger().info(
        "round collected round=%d accepted=%d asked=%d missing=%s",
        collected.round,
        len(collected.accepted),
        len(collected.answers),
        ",".join(due) or "none",
    )
    return collected


class _Collecting:
    """One coordinator's wait for the answers of one round."""

    def __init__(
        self, assembly: Assembly, store: ObjectStore, round_plan: RoundPlan, look_after: LookAfter
    ) -> None:
        self._assembly, self._store, self._plan = assembly, store, round_plan
        self._look_after = look_after
        self._logger = get_run_logger()
        self._progress = reports.RoundProgress(round_plan)
        self._answers: dict[str, SiteAnswer] = {}
        self._noted: set[str] = set()
        self._shown: set[str] = set()
        self._shown_at = 0.0
        self._seen: Mapping[str, str] = {}

    def wait(self) -> Collected:
        began = looked_at = time.monotonic()
        self._show()
        while (frozen := self._look()) is None:
            self._note()
            if self._noted != self._shown and time.monotonic() - self._shown_at > SHOWN_EVERY_S:
                self._show()
            if time.monotonic() - looked_at > LOOK_AFTER_S:
                self._look_after_sessions()
                looked_at = time.monotonic()
            time.sleep(POLL_S if looked_at - began < EAGER_S else LATER_POLL_S)
        self._note()
        self._show()
        return frozen

    def _look(self) -> Collected | None:
        assembly, store, round_plan = self._assembly, self._store, self._plan
        try:
            # Around what the round itself needs; what people are shown of it may fail without it.
            with release.failed_if_hopeless(assembly, store, round_plan, now=_now):
                self._answers |= collection.new_answers(
                    assembly, store, round_plan, known=self._answers
                )
                return closing.close_collection(
                    assembly,
                    store,
                    round_plan,
                    answers=self._answers,
                    now=_now(),
                    seen=self._seen,
                )
        except StoreUnavailable as error:
            # The round's deadline stands; the next look tries again.
            self._logger.warning("store away round=%d: %s", round_plan.round, error)
            return None

    def _note(self) -> None:
        new = {s: answer for s, answer in self._answers.items() if s not in self._noted}
        self._noted |= set(new)
        for site, answer in new.items():
            self._logger.info(
                "answer site=%s round=%d status=%s reason=%s",
                site,
                self._plan.round,
                answer.status,
                answer.reason or "none",
            )

    def _show(self) -> None:
        self._progress.update(self._answers)
        self._shown, self._shown_at = set(self._noted), time.monotonic()

    def _look_after_sessions(self) -> None:
        try:
            self._seen = self._look_after()
        except ServerFailed as error:
            # Sessions that run need no Prefect server; the next look tries again.
            self._logger.warning("sessions not looked after: %s", error)


@task(name="charge-round", cache_policy=NO_CACHE, persist_result=False)
def charge_round(campaign_id: str, round_plan: RoundPlan, collected: Collected) -> RoundCharge:
    """Record the charges that pay for the release."""
    assembly, store, coordinator = _charging(campaign_id)
    with release.failed_if_hopeless(assembly, store, round_plan, now=_now):
        return charging.charge_round(
            assembly, store, round_plan, collected=collected, coordinator=coordinator
        )


@task(name="release-round", cache_policy=NO_CACHE, persist_result=False)
def release_round(
    campaign_id: str, round_plan: RoundPlan, collected: Collected, charge: RoundCharge
) -> Outcome:
    """Aggregate, write the next adapter and the outcome."""
    assembly, store, coordinator = _charging(campaign_id)
    with release.failed_if_hopeless(assembly, store, round_plan, now=_now):
        return release.release_round(
            assembly,
            store,
            round_plan,
            collected=collected,
            charge=charge,
            now=_now(),
            coordinator=coordinator,
        )


def _charging(campaign_id: str) -> tuple[Assembly, ObjectStore, Coordinator]:
    # Outside what closes a round: a ledger that this process was not given is the operator's to
    # mend, and the round waits for that.
    settings = read_settings()
    store = open_store(settings)
    assembly = plan.read_assembly(store, campaign_id)
    return assembly, store, open_coordinator(assembly, settings, store)


def _now() -> datetime:
    return datetime.now(UTC)


@task(name="skip-round", cache_policy=NO_CACHE, persist_result=False)
def skip_round(campaign_id: str, round_plan: RoundPlan, collected: Collected) -> Outcome:
    """Close a round that too few sites answered."""
    store = open_store(read_settings())
    assembly = plan.read_assembly(store, campaign_id)
    reason = closing.quorum_missed(assembly, store, round_plan, collected)
    return release.skip_round(assembly, store, round_plan, reason=reason, now=_now())
