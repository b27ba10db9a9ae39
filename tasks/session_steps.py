"""What a site session waits for: the site's approval, and the next plan in the store.

Behind a gateway the session leaves one request open until the plan or the run's stop object is
there, so waiting costs next to nothing and a plan is found at once. Other stores are looked at:
often while a plan is due, seldom when idle.
"""

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.assembly import Assembly
from fl_core.campaign.specs import Name
from fl_core.errors import ObjectMissing, PolicyRefused, StoreUnavailable
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.status import round_numbers
from tasks.client_steps import Answer, MakeWork, Session, site_work, take_part
from tasks.gateway_store import GatewayStore
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, site_policy, site_settings

FAST_S = 0.2
SLOW_S = 5.0
FAST_FOR_S = 120.0
OPEN_S = 25.0
RETRY_S = 2.0

log = logging.getLogger(__name__)


@dataclass
class Waiting:
    """How long to sleep between two looks: often while a plan is due, seldom when idle.

    Attributes:
        idle_s: Longest wait before the session gives up.
        since: Monotonic time of the last event.
    """

    idle_s: float
    since: float

    def pause(self) -> None:
        """Sleep a little: less while something may be due."""
        time.sleep(FAST_S if time.monotonic() - self.since < FAST_FOR_S else SLOW_S)

    def goes_on(self) -> bool:
        """Say whether something has happened in the last ``idle_s``."""
        return time.monotonic() - self.since < self.idle_s

    def open_s(self) -> float:
        """Return for how long a request may stay open; never past the end of the session."""
        left_s = self.idle_s - (time.monotonic() - self.since)
        return min(OPEN_S, max(FAST_S, left_s))

    def reset(self) -> None:
        """Note that something has happened."""
        self.since = time.monotonic()


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Validated parameters of one session."""

    campaign_id: Name
    run: Name
    home: SiteHome
    config: SiteConfig

    def store(self) -> ObjectStore:
        """Return the campaign's store, as this site reaches it."""
        return open_store(site_settings(self.home, self.config))


def serve(request: SessionRequest, *, make_work: MakeWork = site_work) -> str:
    """Answer plans until the run's stop object, or until nothing happens for long.

    Args:
        request: What the session was asked for.
        make_work: Makes the site's work on its rows.

    Returns:
        ``stopped``, ``idle``, or ``left`` where the site's operator left the campaign.
    """
    store = request.store()
    waiting = Waiting(idle_s=request.config.idle_s, since=time.monotonic())
    assembly = _approved(request, store, waiting)
    if assembly is None:
        return "stopped"
    session = Session(
        request.home,
        request.config,
        assembly,
        store,
        make_work,
        is_over=lambda: is_stopped(request, store),
    )
    _prepare(session)
    session.watch_coordinator()
    try:
        return _serve_plans(session, request, waiting)
    finally:
        # The last round has no later one that would find what it left.
        session.settle()
        session.watch_coordinator()


def _serve_plans(session: Session, request: SessionRequest, waiting: Waiting) -> str:
    store = session.store
    known = round_numbers(store, request.campaign_id)
    number = known[-1] if known else 1
    while True:
        if number <= session.assembly.campaign.max_rounds:
            session.work_out_next()
        plan = _next_plan(request, store, number, waiting)
        if isinstance(plan, str):
            return plan
        if is_due(session, plan):
            _answer_in_time(session, plan)
            if session.has_left():
                return "left"
        else:
            # Plans may be invented without end, and be read as fast as they come.
            time.sleep(FAST_S)
        number += 1
        waiting.reset()


def _next_plan(
    request: SessionRequest, store: ObjectStore, number: int, waiting: Waiting
) -> RoundPlan | Literal["stopped", "idle"]:
    """Wait for a plan, the run's end, or for so long that the session gives up."""
    plan_key = keys.plan(request.campaign_id, number)
    stop_key = keys.stop(request.campaign_id, request.run)
    while True:
        found = _look(store, (stop_key, plan_key), waiting)
        if stop_key in found:
            return "stopped"
        if plan_key in found:
            plan = _plan(request, store, number)
            if plan is not None:
                return plan
            waiting.pause()
        if not waiting.goes_on():
            return "idle"


def _look(store: ObjectStore, asked: tuple[str, ...], waiting: Waiting) -> list[str]:
    """Return those of the keys that exist; none after a while in which none did."""
    try:
        if isinstance(store, GatewayStore):
            begun, open_s = time.monotonic(), waiting.open_s()
            found = [key for key in store.wait(asked, seconds=open_s) if key in asked]
            # A gateway, or a proxy, that says nothing at once would be asked as fast as the line
            # allows, and each request is two lines on this site's disk.
            if time.monotonic() - begun > open_s / 2:
                return found
        else:
            found = [key for key in asked if exists(store, key)]
    except StoreUnavailable as error:
        log.warning("store away: %s", error)
        found = []
    if not found:
        waiting.pause()
    return found


def _prepare(session: Session) -> None:
    """Load rows and model before the first plan is there; what fails is tried again with it."""
    try:
        session.work()
    except Exception:
        # Whatever a row did to a library: a session that fails here would show it to the server.
        log.exception("rows or model are not ready")


def is_stopped(request: SessionRequest, store: ObjectStore) -> bool:
    """Say whether the run has ended; a store that is away says nothing."""
    try:
        return exists(store, keys.stop(request.campaign_id, request.run))
    except StoreUnavailable as error:
        log.warning("store away: %s", error)
        return False


def is_due(session: Session, plan: RoundPlan) -> bool:
    """Say whether the site is asked, the round is open, and no answer of the site is there.

    A round may go on before its deadline: what a site trained then would be charged for nothing.
    """
    campaign_id, site = session.assembly.campaign.id, session.config.site
    if site not in plan.cohort or datetime.now(UTC) >= plan.deadline:
        return False
    # One listing for both questions: it lies between a plan and its training.
    present = session.store.list(keys.round_prefix(campaign_id, plan.round))
    ends = {
        keys.collected(campaign_id, plan.round),
        keys.manifest(campaign_id, plan.round, site),
        keys.declined(campaign_id, plan.round, site),
    }
    return ends.isdisjoint(present)


def _answer_in_time(session: Session, plan: RoundPlan) -> Answer:
    answer: Answer = take_part(plan, session.answer)
    while answer == "retry" and datetime.now(UTC) < plan.deadline:
        time.sleep(RETRY_S)
        answer = take_part(plan, session.answer)
    return answer


def _plan(request: SessionRequest, store: ObjectStore, number: int) -> RoundPlan | None:
    try:
        key = keys.plan(request.campaign_id, number)
        return read_document(store, key, RoundPlan, max_bytes=MAX_DOCUMENT_BYTES)
    except ObjectMissing:
        return None
    except StoreUnavailable as error:
        log.warning("store away: %s", error)
        return None


def _approved(request: SessionRequest, store: ObjectStore, waiting: Waiting) -> Assembly | None:
    """Wait for the site's own approval of the campaign; None if the run ends before."""
    assembly = read_assembly(store, request.campaign_id)
    told = False
    while assembly.digest not in site_policy(request.home).campaigns:
        if not told:
            log.warning(
                "campaign waits for approval: fedloom site approve %s  digest=%s",
                request.campaign_id,
                assembly.digest,
            )
            told = True
        if is_stopped(request, store):
            return None
        waiting.pause()
        if not waiting.goes_on():
            raise PolicyRefused(f"campaign {request.campaign_id!r} was not approved in time")
    waiting.reset()
    return assembly
