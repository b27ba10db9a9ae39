"""What a site session waits for: the site's approval, and the next plan in the store."""

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.assembly import Assembly
from fl_core.campaign.specs import Name
from fl_core.errors import ObjectMissing, PolicyRefused, StoreUnavailable
from fl_core.rounds.collection import has_answered
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.status import round_numbers
from tasks.client_steps import Answer, MakeWork, Session, site_work, take_part
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, site_policy, site_settings

FAST_S = 0.2
SLOW_S = 5.0
FAST_FOR_S = 120.0
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

    def sleep(self) -> bool:
        """Sleep a little; return False once nothing has happened for ``idle_s``."""
        waited = time.monotonic() - self.since
        time.sleep(FAST_S if waited < FAST_FOR_S else SLOW_S)
        return waited < self.idle_s

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
        ``stopped`` or ``idle``.
    """
    store = request.store()
    waiting = Waiting(idle_s=request.config.idle_s, since=time.monotonic())
    assembly = _approved(request, store, waiting)
    if assembly is None:
        return "stopped"
    session = Session(request.home, request.config, assembly, store, make_work)
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
    while not is_stopped(request, store):
        plan = _plan(request, store, number)
        if plan is None:
            if not waiting.sleep():
                return "idle"
            continue
        if is_due(session, plan):
            _answer_in_time(session, plan)
        number += 1
        waiting.reset()
    return "stopped"


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
    """Say whether the site is asked, the round is open, and no answer of the site is there."""
    campaign_id, site = session.assembly.campaign.id, session.config.site
    if site not in plan.cohort or datetime.now(UTC) >= plan.deadline:
        return False
    return not has_answered(session.store, campaign_id, round_number=plan.round, site=site)


def _answer_in_time(session: Session, plan: RoundPlan) -> Answer:
    answer: Answer = take_part(plan, session.answer)
    while answer == "retry" and datetime.now(UTC) < plan.deadline:
        time.sleep(RETRY_S)
        answer = take_part(plan, session.answer)
    return answer


def _plan(request: SessionRequest, store: ObjectStore, number: int) -> RoundPlan | None:
    try:
        return read_document(store, keys.plan(request.campaign_id, number), RoundPlan)
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
        if not waiting.sleep():
            raise PolicyRefused(f"campaign {request.campaign_id!r} was not approved in time")
    waiting.reset()
    return assembly
