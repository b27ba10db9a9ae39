"""Start, watch and cancel flow runs: with ``flows.registration`` the one place that asks Prefect.

Prefect says who runs and in which state; what came out of a run is read from the store, under our
own keys. The result of a run is never fetched: its metadata is written by whoever set the state,
so reading it would run code of a site in the coordinator. Everything here returns strings and
small frozen values.

A run is started under an idempotency key that counts the attempts before it, because an old key
hands the old run back, also when that one is dead; two coordinators that count alike get one run.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Cancelling

from flows.registration import (
    EVALUATE_RELEASE,
    LOCK_CAMPAIGN,
    RUN_CAMPAIGN,
    SITE_SESSION,
    api,
    register,
)

__all__ = [
    "RunState",
    "SessionState",
    "campaign_runs",
    "cancel_sessions",
    "ensure_sessions",
    "evaluate",
    "have_locked",
    "lock_campaign",
    "register",
    "run_state",
    "session_runs",
    "start_campaign",
    "start_evaluation",
    "wait_final",
]

_PAGE = 200
_POLL_S = 0.3
# A worker that is there takes a run within seconds; its first start loads torch.
_START_S = 45.0
_EVALUATION_S = 600.0
# A worker that is busy with an evaluation locks after it.
_LOCK_S = 300.0
# A session that ends as soon as it starts must not be started hundreds of times in one round.
_LONGEST_PAUSE_S = 60.0
# A worker stops a cancelled run within seconds; after this nobody is there to confirm it.
_CANCEL_GRACE_S = 60.0
_WAITING = frozenset({"SCHEDULED", "PENDING"})
_FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class RunState:
    """A flow run.

    Attributes:
        run_id: Id of the flow run.
        state_type: Prefect's state type, such as ``RUNNING``.
        message: What the state says; written by whoever set it, so for people only.
    """

    run_id: str
    state_type: str
    message: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the run is over."""
        return self.state_type in _FINAL


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


def ensure_sessions(campaign_id: str, *, sites: Sequence[str], run: str) -> None:
    """Have one live session per site, and start those that are missing or were lost.

    Called when a campaign run begins and again while a round is open. A lost session is started
    again at once; one that keeps ending is started after pauses that double up to a minute.

    Args:
        campaign_id: The campaign.
        sites: Sites that should have a session.
        run: The campaign run that the sessions serve.

    Raises:
        ServerFailed: The API does not answer, or a site has no deployment.
    """
    with api() as client:
        by_site = _sessions_by_site(client, campaign_id)
        for site in sites:
            earlier = by_site.get(site, [])
            if any(not _state(flow_run).is_final for flow_run in earlier):
                continue
            if not _pause_is_over(earlier, run=run, now=datetime.now(UTC)):
                continue
            _start(
                client,
                _Request(
                    deployment=f"{SITE_SESSION}/{site}",
                    parameters={"campaign_id": campaign_id, "run": run, "site": site},
                    key=f"{campaign_id}/{run}/{site}/{len(earlier)}",
                    name=site,
                    tags=[_campaign_tag(campaign_id), f"site:{site}"],
                ),
            )


def session_runs(campaign_id: str) -> dict[str, SessionState]:
    """Return a session run per site that ever had one for this campaign."""
    with api() as client:
        by_site = _sessions_by_site(client, campaign_id)
    found = {}
    for site, runs in by_site.items():
        live = [flow_run for flow_run in runs if not _state(flow_run).is_final]
        chosen = [*runs, *live][-1]
        found[site] = SessionState(
            run_id=str(chosen.id),
            state_type=_state(chosen).state_type,
            run=str(chosen.parameters.get("run", "")),
            attempts=len(runs),
        )
    return found


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
                if _state(flow_run).is_final or run not in (None, flow_run.parameters.get("run")):
                    continue
                _cancel(client, flow_run)
                cancelled += 1
    return cancelled


def start_campaign(parameters: Mapping[str, Any]) -> str:
    """Start the flow ``run-campaign`` and return the id of its run."""
    campaign_id = parameters.get("campaign_id")
    with api() as client:
        deployment = client.read_deployment_by_name(f"{RUN_CAMPAIGN}/{RUN_CAMPAIGN}")
        flow_run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(parameters),
            tags=[_campaign_tag(campaign_id)] if campaign_id else [],
        )
    return str(flow_run.id)


def run_state(run_id: str) -> RunState:
    """Return the present state of a run."""
    with api() as client:
        return _state(client.read_flow_run(UUID(run_id)))


def campaign_runs(campaign_id: str) -> list[RunState]:
    """Return the runs of ``run-campaign`` that were started for a campaign's id, oldest first."""
    with api() as client:
        runs = _runs(client, flow_name=RUN_CAMPAIGN, tags=[_campaign_tag(campaign_id)])
        return [_state(flow_run) for flow_run in runs]


def start_evaluation(campaign_id: str, *, round_number: int) -> str:
    """Have a release evaluated; return the id of the run that does it or did it.

    A run that failed is followed by another attempt at the next call.
    """
    with api() as client:
        return _start_once(
            client,
            EVALUATE_RELEASE,
            parameters={"campaign_id": campaign_id, "round_number": round_number},
            tags=[_campaign_tag(campaign_id), f"round:{round_number}"],
        )


def evaluate(campaign_id: str, round_number: int) -> bool:
    """Have a release evaluated and wait for it.

    Returns:
        Whether the evaluation completed; False when its worker is away, fails or takes too long.
        A later call waits for the same run, or starts another attempt.
    """
    run_id = start_evaluation(campaign_id, round_number=round_number)
    return _wait(run_id, start_s=_START_S, timeout_s=_EVALUATION_S) == "COMPLETED"


def lock_campaign(text_sha256: str, *, attempt: str) -> str:
    """Have a campaign's text locked by the evaluation worker; return the id of the run.

    Args:
        text_sha256: Hash of the text, which lies in the store.
        attempt: Name of this try; the same one is locked once.
    """
    with api() as client:
        return _start_once(
            client,
            LOCK_CAMPAIGN,
            parameters={"text_sha256": text_sha256, "attempt": attempt},
            tags=[f"draft:{text_sha256}", f"attempt:{attempt}"],
        )


def have_locked(text_sha256: str, *, attempt: str) -> None:
    """Have a text locked and wait until the run is over; what came of it is in the store."""
    wait_final(lock_campaign(text_sha256, attempt=attempt), timeout_s=_LOCK_S)


def wait_final(flow_run_id: str, *, timeout_s: float) -> str:
    """Wait until a run is over.

    Returns:
        The run's state type: ``COMPLETED``, ``FAILED``, ``CRASHED`` or ``CANCELLED``; another one
        if it was not over in time.
    """
    return _wait(flow_run_id, start_s=timeout_s, timeout_s=timeout_s)


def _wait(flow_run_id: str, *, start_s: float, timeout_s: float) -> str:
    began = time.monotonic()
    with api() as client:
        while True:
            state = _state(client.read_flow_run(UUID(flow_run_id)))
            limit_s = start_s if state.state_type in _WAITING else timeout_s
            if state.is_final or time.monotonic() - began >= limit_s:
                return state.state_type
            time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class _Request:
    deployment: str
    parameters: dict[str, Any]
    key: str
    tags: list[str]
    name: str | None = None


def _start_once(
    client: SyncPrefectClient, flow_name: str, *, parameters: dict[str, Any], tags: list[str]
) -> str:
    earlier = _runs(client, flow_name=flow_name, tags=tags)
    lost = [r for r in earlier if _state(r).state_type in _FINAL - {"COMPLETED"}]
    key = "/".join([flow_name, *tags, str(len(lost))])
    request = _Request(f"{flow_name}/{flow_name}", parameters, key, tags)
    return _start(client, request)


def _start(client: SyncPrefectClient, request: _Request) -> str:
    flow_run = client.create_flow_run_from_deployment(
        client.read_deployment_by_name(request.deployment).id,
        parameters=request.parameters,
        idempotency_key=request.key,
        name=request.name,
        tags=request.tags,
    )
    return str(flow_run.id)


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
    for flow_run in _runs(client, flow_name=SITE_SESSION, tags=[_campaign_tag(campaign_id)]):
        site = flow_run.parameters.get("site")
        if isinstance(site, str):
            by_site.setdefault(site, []).append(flow_run)
    return by_site


def _runs(client: SyncPrefectClient, *, flow_name: str, tags: list[str]) -> list[FlowRun]:
    """All runs of a flow that carry all these tags, oldest first."""
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


def _state(flow_run: FlowRun) -> RunState:
    state = flow_run.state
    if state is None:
        return RunState(str(flow_run.id), "")
    return RunState(str(flow_run.id), state.type.value, state.message or "")


def _campaign_tag(campaign_id: str) -> str:
    return f"campaign:{campaign_id}"
