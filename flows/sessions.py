"""The sites' session runs in Prefect: found, counted, started and cancelled.

One session per site is live at any time (``flows.session_watch`` keeps it so). A lost one is
started again under a new attempt, because an old idempotency key hands the old run back, also when
that one is dead; two coordinators that count alike get one run. What a session did is never read
from Prefect: its objects in the store say that.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowRunFilter,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Cancelling

from flows.prefect_names import RUN_CAMPAIGN, SITE_SESSION
from flows.registration import api

PAGE = 200
# A worker stops a cancelled run within seconds; after this nobody is there to confirm it.
_CANCEL_GRACE_S = 60.0
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Request:
    """A run to start: of which deployment, under which idempotency key."""

    deployment: str
    parameters: dict[str, Any]
    key: str
    tags: list[str]
    name: str | None = None


def runs_to_stop(campaign_id: str, *, run: str, is_over: bool) -> list[str]:
    """Return the campaign runs whose sessions end with a run: its own, and all that are over.

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
        # Those that are over by their state as well: a worker that was cut off goes on with a
        # session that was marked Crashed meanwhile, and only its stop object ends it.
        served = {
            name
            for runs in sessions_by_site(client, campaign_id).values()
            for flow_run in runs
            if (name := flow_run.parameters.get("run"))
        }
        others = [UUID(name) for name in served if name != run and _is_id(name)]
        found = [] if is_over else by_id(client, others)
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
            limit=PAGE,
        )
    return sorted(str(flow_run.id) for flow_run in found if str(flow_run.id) != run)


def cancel_sessions(campaign_id: str, *, runs: Container[str] | None = None) -> int:
    """Cancel the sessions of a campaign that are not over.

    A session that a site's worker holds is Cancelling until the worker confirms; one that nobody
    confirms within a minute is Cancelled when this is called again.

    Args:
        campaign_id: The campaign.
        runs: Only sessions of these campaign runs; None is all of them.

    Returns:
        How many sessions were not over.
    """
    cancelled = 0
    with api() as client:
        for found in sessions_by_site(client, campaign_id).values():
            for flow_run in found:
                is_meant = runs is None or flow_run.parameters.get("run") in runs
                if is_meant and state_type(flow_run) not in FINAL:
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
            limit=PAGE,
            offset=len(found),
        )
        found.extend(page)
        if len(page) < PAGE:
            return sorted(found, key=lambda r: r.created or datetime.min.replace(tzinfo=UTC))


def campaign_tag(campaign_id: str) -> str:
    """Return the tag of all that belongs to a campaign."""
    return f"campaign:{campaign_id}"


def state_type(flow_run: FlowRun) -> str:
    """Return Prefect's type of a run's present state."""
    return "" if flow_run.state is None else flow_run.state.type.value


def by_id(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    """Return the runs of these ids that there are."""
    if not ids:
        return []
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": list(ids)}}), limit=PAGE
    )


def _cancel(client: SyncPrefectClient, flow_run: FlowRun) -> None:
    state = flow_run.state
    if state is None or state.type != StateType.CANCELLING:
        client.set_flow_run_state(flow_run.id, Cancelling())
    elif (datetime.now(UTC) - state.timestamp).total_seconds() > _CANCEL_GRACE_S:
        client.set_flow_run_state(flow_run.id, Cancelled(), force=True)


def sessions_by_site(client: SyncPrefectClient, campaign_id: str) -> dict[str, list[FlowRun]]:
    """Return all session runs of a campaign by site, oldest first."""
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
