"""The coordinator's steps of a round, one task each, over the store.

Tasks take ids and small documents and return small documents; the tensors stay in the store. Every
step may run twice: it returns what the first run has written.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import FedloomError, StoreUnavailable
from fl_core.rounds import charging, collection, plan, release
from fl_core.rounds.central_release import Coordinator
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan, SiteAnswer
from tasks import reports
from tasks.federation import open_coordinator
from tasks.settings import open_store, read_settings

POLL_S = 0.2
KEEP_ALIVE_S = 3.0


@task(name="open-round", cache_policy=NO_CACHE, persist_result=False)
def open_round(campaign_id: str, round_number: int) -> RoundPlan:
    """Return the round's plan, drawing the cohort if there is none."""
    store = open_store(read_settings())
    assembly = plan.read_assembly(store, campaign_id)
    return plan.open_round(assembly, store, round_number=round_number, now=datetime.now(UTC))


@task(name="collect-updates", cache_policy=NO_CACHE, persist_result=False)
def collect_updates(
    campaign_id: str, round_plan: RoundPlan, keep_alive: Callable[[], None]
) -> Collected:
    """Wait for the cohort's answers, check each, and freeze the list.

    Args:
        campaign_id: The campaign.
        round_plan: The round's plan.
        keep_alive: Called every few seconds while sites are due; starts lost sessions again.
    """
    logger = get_run_logger()
    store = open_store(read_settings())
    assembly = plan.read_assembly(store, campaign_id)
    answers: dict[str, SiteAnswer] = {}
    checked_at = time.monotonic()
    progress = reports.RoundProgress(round_plan)
    progress.update(answers)
    while True:
        try:
            new = _new_answers(assembly, store, round_plan, known=answers)
            answers |= new
            frozen = collection.close_collection(
                assembly, store, round_plan, answers=answers, now=datetime.now(UTC)
            )
        except StoreUnavailable as error:
            # The round's deadline stands; the next look tries again.
            logger.warning("store away round=%d: %s", round_plan.round, error)
            new, frozen = {}, None
        for site, answer in new.items():
            logger.info("answer site=%s round=%d %s", site, round_plan.round, answer.status)
        if new:
            progress.update(answers)
        if frozen is not None:
            return frozen
        if time.monotonic() - checked_at > KEEP_ALIVE_S:
            _try(keep_alive)
            checked_at = time.monotonic()
        time.sleep(POLL_S)


def _new_answers(
    assembly: Assembly, store: ObjectStore, round_plan: RoundPlan, *, known: Mapping[str, object]
) -> dict[str, SiteAnswer]:
    found = {
        site: collection.examine_site(assembly, store, round_plan, site=site)
        for site in sorted(set(round_plan.cohort) - set(known))
    }
    return {site: answer for site, answer in found.items() if answer is not None}


@task(name="charge-round", cache_policy=NO_CACHE, persist_result=False)
def charge_round(campaign_id: str, round_plan: RoundPlan, collected: Collected) -> RoundCharge:
    """Record the charges that pay for the release."""
    assembly, store, coordinator = _charging(campaign_id)
    return charging.charge_round(
        assembly, store, round_plan, collected=collected, coordinator=coordinator
    )


@task(name="release-round", cache_policy=NO_CACHE, persist_result=False)
def release_round(
    campaign_id: str, round_plan: RoundPlan, collected: Collected, charge: RoundCharge
) -> Outcome:
    """Aggregate, write the next adapter and the outcome."""
    assembly, store, coordinator = _charging(campaign_id)
    return release.release_round(
        assembly,
        store,
        round_plan,
        collected=collected,
        charge=charge,
        now=datetime.now(UTC),
        coordinator=coordinator,
    )


def _charging(campaign_id: str) -> tuple[Assembly, ObjectStore, Coordinator]:
    settings = read_settings()
    store = open_store(settings)
    assembly = plan.read_assembly(store, campaign_id)
    return assembly, store, open_coordinator(assembly, settings, store)


@task(name="skip-round", cache_policy=NO_CACHE, persist_result=False)
def skip_round(campaign_id: str, round_plan: RoundPlan, collected: Collected) -> Outcome:
    """Close a round that too few sites answered."""
    store = open_store(read_settings())
    return release.skip_round(
        plan.read_assembly(store, campaign_id),
        store,
        round_plan,
        reason=f"{len(collected.accepted)} of {len(round_plan.cohort)} sites sent an update",
        now=datetime.now(UTC),
    )


def _try(keep_alive: Callable[[], None]) -> None:
    try:
        keep_alive()
    except FedloomError as error:
        # Sessions that run need no Prefect server; the next look tries again.
        get_run_logger().warning("sessions not looked after: %s", error)
