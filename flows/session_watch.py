"""Looking after the sites' sessions while a round is open, and once more when its run ends.

A session that was lost is started again; one that keeps ending is started after pauses. A run whose
worker is gone is closed here, since nobody else would (``flows.worker_leases``): whatever campaign
it serves, it holds the only place of its site. A person's cancellation of the round or of its
campaign is noticed here too, so that it works wherever the coordinator's process runs.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Crashed

from fl_core.errors import RunCancelled
from flows.prefect_names import SITE_SESSION, site_pool
from flows.registration import api
from flows.sessions import (
    FINAL,
    PAGE,
    Request,
    by_id,
    campaign_tag,
    sessions_by_site,
    start,
    state_type,
)
from flows.worker_leases import WorkerLeases, leases_of

# A session that ends as soon as it starts must not be started hundreds of times in one round.
_LONGEST_PAUSE_S = 60.0
_SETTLE_S = 1.0
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
        with self._leases.look(), api() as client:
            self._require_wanted(client)
            lost = self._close_lost(client)
            by_site = sessions_by_site(client, self._campaign_id)
            seen = {site: self._kept(client, site, by_site.get(site, [])) for site in self._sites}
        return seen | {site: "worker away" for site in self._sites if site_pool(site) in lost}

    def _require_wanted(self, client: SyncPrefectClient) -> None:
        for flow_run in by_id(client, self._watched):
            if state_type(flow_run) in {"CANCELLING", "CANCELLED"}:
                raise RunCancelled(
                    f"run {flow_run.name!r} was cancelled by a person; its round stays open, "
                    "run the campaign again to finish it"
                )

    def _close_lost(self, client: SyncPrefectClient) -> set[str]:
        pools = [site_pool(site) for site in self._sites]
        lost, _ = _close_lost(client, pools, self._leases)
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


def settle_sessions(campaign_id: str, *, run: str, is_patient: bool) -> None:
    """Close the sessions that nobody runs any more, when a campaign run ends.

    Args:
        campaign_id: The campaign.
        run: The run that ends; what it saw of workers decides.
        is_patient: Wait for the verdict on workers whose heartbeat is overdue, at most two of
            their intervals; the others are not waited for.

    Raises:
        ServerFailed: The API does not answer.
    """
    leases = leases_of(run)
    while True:
        with leases.look(), api() as client:
            pools = [site_pool(site) for site in sessions_by_site(client, campaign_id)]
            lost, held = _close_lost(client, pools, leases)
        if not (is_patient and any(leases.is_silent(pool) for pool in held - lost)):
            return
        time.sleep(_SETTLE_S)


def _close_lost(
    client: SyncPrefectClient, pools: Sequence[str], leases: WorkerLeases
) -> tuple[set[str], set[str]]:
    """Close runs without a worker; return the pools without one, and all that hold a run."""
    # Whatever campaign they serve: a run holds the only place of its site's pool.
    claimed = _claimed(client, pools)
    held = {pool for flow_run in claimed if (pool := flow_run.work_pool_name) is not None}
    lost = leases.lost(client, sorted(held))
    for flow_run in claimed:
        if flow_run.work_pool_name in lost:
            _close(client, flow_run)
    return lost, held


def _claimed(client: SyncPrefectClient, pools: Sequence[str]) -> list[FlowRun]:
    in_hand = FlowRunFilter.model_validate({"state": {"type": {"any_": _CLAIMED}}})
    found: list[FlowRun] = []
    # A pool of a site holds one run, so a page holds that of all its pools.
    for first in range(0, len(pools), PAGE):
        names = {"name": {"any_": list(pools[first : first + PAGE])}}
        found.extend(
            client.read_flow_runs(
                work_pool_filter=WorkPoolFilter.model_validate(names),
                flow_run_filter=in_hand,
                limit=PAGE,
            )
        )
    return found


def _words(flow_run: FlowRun) -> str:
    return _WORDS.get(state_type(flow_run), "session is in no known state")


def _close(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    # Not forced: a run that ended in this very moment keeps its own end.
    is_unwanted = flow_run.state is not None and flow_run.state.type == StateType.CANCELLING
    last: State[Any] = Crashed(message="worker lost")
    if is_unwanted:
        last = Cancelled(message="worker lost")
    client.set_flow_run_state(flow_run.id, last)


def _pause_is_over(earlier: Sequence[FlowRun], *, run: str, now: datetime) -> bool:
    ended = [r.end_time for r in earlier if r.parameters.get("run") == run and r.end_time]
    if len(ended) < 2:  # noqa: PLR2004 -- the first loss is answered at once
        return True
    pause_s = min(_LONGEST_PAUSE_S, 2.0 ** (len(ended) - 1))
    return (now - max(ended)).total_seconds() >= pause_s
