"""What Prefect knows of the sites' workers: last heard of, and the session they hold.

Whether a worker is away is the server's own word, taken by one clock: the coordinator's and a
site's may differ by an hour. Only `fedloom sites` and `fedloom revoke` ask here; what a round needs
to know of a site is in the store.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, Worker, WorkerStatus
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled

from flows.prefect_names import site_pool
from flows.registration import api

_PAGE = 200
_LIVE = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]
_HELD = frozenset({"PENDING", "RUNNING", "CANCELLING"})


@dataclass(frozen=True, slots=True)
class Presence:
    """One site as Prefect sees it.

    Attributes:
        last_seen: Last heartbeat of its worker, by the server's clock; None before any.
        is_online: Whether the server still counts on the worker.
        campaign: Campaign of the session that the worker holds; None where it holds none.
    """

    last_seen: datetime | None = None
    is_online: bool = False
    campaign: str | None = None


def presences(sites: Iterable[str]) -> dict[str, Presence]:
    """Return how every site's worker is, a site without a work pool included.

    Raises:
        ServerFailed: The API does not answer.
    """
    with api() as client:
        return {site: _presence(client, site) for site in sites}


def end_runs(site: str) -> int:
    """Cancel every session run of a site that is not over, without waiting for its worker.

    For a site that was revoked: its worker can confirm nothing any more, and a run that nobody
    ends would stay Running for ever.

    Returns:
        How many runs were ended.

    Raises:
        ServerFailed: The API does not answer.
    """
    with api() as client:
        runs = _live_runs(client, site)
        for run in runs:
            client.set_flow_run_state(run.id, Cancelled(message="the site was revoked"), force=True)
        return len(runs)


def _presence(client: SyncPrefectClient, site: str) -> Presence:
    worker = _last_heard(client, site)
    held = [run for run in _live_runs(client, site) if run.state and run.state.type in _HELD]
    campaigns = [str(run.parameters.get("campaign_id", "")) for run in held]
    return Presence(
        last_seen=None if worker is None else worker.last_heartbeat_time,
        is_online=worker is not None and worker.status == WorkerStatus.ONLINE,
        campaign=next(filter(None, campaigns), None),
    )


def _last_heard(client: SyncPrefectClient, site: str) -> Worker | None:
    try:
        workers = client.read_workers_for_work_pool(site_pool(site))
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise
        return None
    heard = {w.last_heartbeat_time: w for w in workers if w.last_heartbeat_time is not None}
    return heard[max(heard)] if heard else None


def _live_runs(client: SyncPrefectClient, site: str) -> list[FlowRun]:
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [site_pool(site)]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": _LIVE}}}),
        limit=_PAGE,
    )
