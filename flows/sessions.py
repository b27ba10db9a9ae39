"""The sites' session runs in Prefect: started, looked after while a round is open, and ended.

One session per site is live at any time. A lost one is started again under a new attempt, because
an old idempotency key hands the old run back, also when that one is dead; two coordinators that
count alike get one run. A run whose worker is gone is closed here, since nobody else would
(``flows.worker_leases``). What a session did is never read from Prefect: its objects say that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowRunFilter,
    WorkPoolFilter,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Cancelling, Crashed

from fl_core.errors import RunCancelled
from flows.registration import RUN_CAMPAIGN, SITE_SESSION, api, site_pool
from flows.worker_leases import WorkerLeases

_PAGE = 200
# A session that ends as soon as it starts must not be started hundreds of times in one round.
_LONGEST_PAUSE_S = 60.0
# A worker stops a cancelled run within seconds; after this nobody is there to confirm it.
_CANCEL_GRACE_S = 60.0
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_CLAIMED = ["PENDING", "RUNNING", "CANCELLING"]
_WORDS = {
    "SCHEDULED": "session waits for its worker",
    "PENDING": "session starts",
    "RUNNING": "session runs",
    "CANCELLING": "session is being cancelled",
    "COMPLETED": "session ended",
    "FAILED": "session failed",
    "CRASHED": "session crashed",
    "CANCELLED": "session cancelled",
}


@dataclass(frozen=True, slots=True)
class SessionState:
    """The session run of a site that lives, or else the latest one.

    Attributes:
        run_id: Id of the flow run.
        state_type: Prefect's state type, such as ``RUNNING``.
        run: The campaign run it belongs to.
        attempts: Session runs of this campaign at this site so far.
    """

    run_id: str
    state_type: str
    run: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Request:
    """A run to start: of which deployment, under which idempotency key."""

    deployment: str
    parameters: dict[str, Any]
    key: str
    tags: list[str]
    name: str | None = None


class SessionWatch:
    """Keeps one live session per site while a round is open.

    Args:
        campaign_id: The campaign.
        sites: Sites that should have a session.
        run: The campaign run that the sessions serve.
        watched: Ids of the runs whose cancellation by a person ends the wait.
        leases: Whether the sites' workers are there.
    """

    def __init__(
        self,
        campaign_id: str,
        *,
        sites: Sequence[str],
        run: str,
        watched: Sequence[str] = (),
        leases: WorkerLeases | None = None,
    ) -> None:
        self._campaign_id, self._sites, self._run = campaign_id, tuple(sites), run
        self._watched = [UUID(run_id) for run_id in watched]
        self._leases = WorkerLeases() if leases is None else leases

    def __call__(self) -> dict[str, str]:
        """Close what nobody runs any more, start what is missing; say what each session looks like.

        Three requests for all sites, one more per site with a session in hand, two more per session
        that is started.

        Raises:
            RunCancelled: A person cancelled one of the watched runs.
            ServerFailed: The API does not answer, or a site has no deployment.
        """
        with api() as client:
            self._require_wanted(client)
            lost = self._close_lost(client)
            by_site = _sessions_by_site(client, self._campaign_id)
            seen = {site: self._kept(client, site, by_site.get(site, [])) for site in self._sites}
        return seen | {site: "worker away" for site in self._sites if site_pool(site) in lost}

    def _require_wanted(self, client: SyncPrefectClient) -> None:
        for flow_run in _by_id(client, self._watched):
            if state_type(flow_run) in {"CANCELLING", "CANCELLED"}:
                raise RunCancelled(
                    f"run {flow_run.name!r} was cancelled by a person; its round stays open, "
                    "run the campaign again to finish it"
                )

    def _close_lost(self, client: SyncPrefectClient) -> set[str]:
        # Whatever campaign it serves: it holds the only place of the site's pool.
        claimed = _claimed(client, [site_pool(site) for site in self._sites])
        held = {pool for flow_run in claimed if (pool := flow_run.work_pool_name) is not None}
        lost = self._leases.lost(client, sorted(held))
        for flow_run in claimed:
            if flow_run.work_pool_name in lost:
                _close(client, flow_run)
        return lost

    def _kept(self, client: SyncPrefectClient, site: str, earlier: Sequence[FlowRun]) -> str:
        live = [flow_run for flow_run in earlier if state_type(flow_run) not in FINAL]
        if live:
            return _words(live[-1])
        if not _pause_is_over(earlier, run=self._run, now=datetime.now(UTC)):
            return _words(earlier[-1])
        start(
            client,
            Request(
                deployment=f"{SITE_SESSION}/{site}",
                parameters={"campaign_id": self._campaign_id, "run": self._run, "site": site},
                key=f"{self._campaign_id}/{self._run}/{site}/{len(earlier)}",
                name=site,
                tags=[campaign_tag(self._campaign_id), f"site:{site}"],
            ),
        )
        return _words(earlier[-1]) if earlier else _WORDS["SCHEDULED"]


def ensure_sessions(campaign_id: str, *, sites: Sequence[str], run: str) -> None:
    """Have one live session per site, and start those that are missing or were lost.

    A lost session is started again at once; one that keeps ending is started after pauses that
    double up to a minute.

    Args:
        campaign_id: The campaign.
        sites: Sites that should have a session.
        run: The campaign run that the sessions serve.

    Raises:
        ServerFailed: The API does not answer, or a site has no deployment.
    """
    SessionWatch(campaign_id, sites=sites, run=run)()


def session_runs(campaign_id: str) -> dict[str, SessionState]:
    """Return a session run per site that ever had one for this campaign."""
    with api() as client:
        by_site = _sessions_by_site(client, campaign_id)
    found = {}
    for site, runs in by_site.items():
        live = [flow_run for flow_run in runs if state_type(flow_run) not in FINAL]
        chosen = [*runs, *live][-1]
        found[site] = SessionState(
            run_id=str(chosen.id),
            state_type=state_type(chosen),
            run=str(chosen.parameters.get("run", "")),
            attempts=len(runs),
        )
    return found


def runs_to_stop(campaign_id: str, *, run: str, is_over: bool) -> list[str]:
    """Return the campaign runs whose sessions end with a run: its own, and those that are over.

    Another run of the campaign that is under way keeps its sessions: a stop object cannot be taken
    back, so it would never get one again. Once the campaign is over nobody needs any.

    Args:
        campaign_id: The campaign.
        run: The run that ends.
        is_over: Whether the campaign has come to its end.

    Raises:
        ServerFailed: The API does not answer.
    """
    with api() as client:
        served = {
            name
            for runs in _sessions_by_site(client, campaign_id).values()
            for flow_run in runs
            if state_type(flow_run) not in FINAL and (name := flow_run.parameters.get("run"))
        }
        others = [UUID(name) for name in served if name != run and _is_id(name)]
        found = [] if is_over else _by_id(client, others)
    kept = {str(r.id) for r in found if state_type(r) not in FINAL}
    return [run, *sorted(served - kept - {run})]


def other_runs(campaign_id: str, *, run: str) -> list[str]:
    """Return the ids of further runs that drive a campaign at this moment.

    Raises:
        ServerFailed: The API does not answer.
    """
    # A run of a campaign bears its id as its name, however it was started.
    wanted = {"name": {"any_": [campaign_id]}, "state": {"type": {"any_": ["RUNNING"]}}}
    with api() as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [RUN_CAMPAIGN]}}),
            flow_run_filter=FlowRunFilter.model_validate(wanted),
            limit=_PAGE,
        )
    return sorted(str(flow_run.id) for flow_run in found if str(flow_run.id) != run)


def cancel_sessions(campaign_id: str, *, run: str | None = None) -> int:
    """Cancel the sessions of a campaign that are not over.

    A session that a site's worker holds is Cancelling until the worker confirms; one that nobody
    confirms within a minute is Cancelled when this is called again.

    Args:
        campaign_id: The campaign.
        run: Only sessions of this campaign run; None is all of them.

    Returns:
        How many sessions were not over.
    """
    cancelled = 0
    with api() as client:
        for runs in _sessions_by_site(client, campaign_id).values():
            for flow_run in runs:
                if state_type(flow_run) in FINAL or run not in (
                    None,
                    flow_run.parameters.get("run"),
                ):
                    continue
                _cancel(client, flow_run)
                cancelled += 1
    return cancelled


def start(client: SyncPrefectClient, request: Request) -> str:
    """Start a run, or find the one that was started under its key; return its id."""
    flow_run = client.create_flow_run_from_deployment(
        client.read_deployment_by_name(request.deployment).id,
        parameters=request.parameters,
        idempotency_key=request.key,
        name=request.name,
        tags=request.tags,
    )
    return str(flow_run.id)


def tagged_runs(client: SyncPrefectClient, *, flow_name: str, tags: list[str]) -> list[FlowRun]:
    """Return all runs of a flow that carry all these tags, oldest first."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [flow_name]}}),
            flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": tags}}),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=_PAGE,
            offset=len(found),
        )
        found.extend(page)
        if len(page) < _PAGE:
            return sorted(found, key=lambda r: r.created or datetime.min.replace(tzinfo=UTC))


def campaign_tag(campaign_id: str) -> str:
    """Return the tag of all that belongs to a campaign."""
    return f"campaign:{campaign_id}"


def state_type(flow_run: FlowRun) -> str:
    """Return Prefect's type of a run's present state."""
    return "" if flow_run.state is None else flow_run.state.type.value


def _words(flow_run: FlowRun) -> str:
    return _WORDS.get(state_type(flow_run), "session is in no known state")


def _claimed(client: SyncPrefectClient, pools: Sequence[str]) -> list[FlowRun]:
    in_hand = FlowRunFilter.model_validate({"state": {"type": {"any_": _CLAIMED}}})
    found: list[FlowRun] = []
    # A pool of a site holds one run, so a page holds that of all its pools.
    for first in range(0, len(pools), _PAGE):
        names = {"name": {"any_": list(pools[first : first + _PAGE])}}
        found.extend(
            client.read_flow_runs(
                work_pool_filter=WorkPoolFilter.model_validate(names),
                flow_run_filter=in_hand,
                limit=_PAGE,
            )
        )
    return found


def _by_id(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    if not ids:
        return []
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": list(ids)}}), limit=_PAGE
    )


def _close(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    # Not forced: a run that ended in this very moment keeps its own end.
    is_unwanted = flow_run.state is not None and flow_run.state.type == StateType.CANCELLING
    last: State[Any] = Crashed(message="worker lost")
    if is_unwanted:
        last = Cancelled(message="worker lost")
    client.set_flow_run_state(flow_run.id, last)


def _cancel(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    state = flow_run.state
    if state is None or state.type != StateType.CANCELLING:
        client.set_flow_run_state(flow_run.id, Cancelling())
    elif (datetime.now(UTC) - state.timestamp).total_seconds() > _CANCEL_GRACE_S:
        client.set_flow_run_state(flow_run.id, Cancelled(), force=True)


def _pause_is_over(earlier: Sequence[FlowRun], *, run: str, now: datetime) -> bool:
    ended = [r.end_time for r in earlier if r.parameters.get("run") == run and r.end_time]
    if len(ended) < 2:  # noqa: PLR2004 -- the first loss is answered at once
        return True
    pause_s = min(_LONGEST_PAUSE_S, 2.0 ** (len(ended) - 1))
    return (now - max(ended)).total_seconds() >= pause_s


def _sessions_by_site(client: SyncPrefectClient, campaign_id: str) -> dict[str, list[FlowRun]]:
    by_site: dict[str, list[FlowRun]] = {}
    tags = [campaign_tag(campaign_id)]
    for flow_run in tagged_runs(client, flow_name=SITE_SESSION, tags=tags):
        site = flow_run.parameters.get("site")
        if isinstance(site, str):
            by_site.setdefault(site, []).append(flow_run)
    return by_site


def _is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True
