"""Start, watch and cancel flow runs: what the coordinator's flows and commands ask of Prefect.

Prefect says who runs and in which state; what came out of a run is read from the store, under our
own keys. The result of a run is never fetched: its metadata is written by whoever set the state,
so reading it would run code of a site in the coordinator. Everything here returns strings and
small frozen values.

A run is started under an idempotency key that counts the attempts before it, because an old key
hands the old run back, also when that one is dead; two coordinators that count alike get one run.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from flows.prefect_names import EVALUATE_RELEASE, LOCK_CAMPAIGN, RUN_CAMPAIGN
from flows.registration import api
from flows.session_watch import SessionWatch, settle_sessions
from flows.sessions import (
    FINAL,
    Request,
    campaign_tag,
    cancel_sessions,
    other_runs,
    runs_to_stop,
    start,
    tagged_runs,
)
from flows.worker_leases import leases_of

__all__ = [
    "CancelledRun",
    "RunState",
    "SessionWatch",
    "cancel_sessions",
    "cancelled",
    "evaluate",
    "have_locked",
    "leases_of",
    "lock_campaign",
    "other_runs",
    "run_state",
    "runs_to_stop",
    "settle_sessions",
    "start_campaign",
    "start_evaluation",
    "wait_final",
]

_POLL_S = 0.3
# A worker that is there takes a run within seconds; its first start loads torch.
_START_S = 45.0
_EVALUATION_S = 600.0
# A worker that is busy with an evaluation locks after it.
_LOCK_S = 300.0
_WAITING = frozenset({"SCHEDULED", "PENDING"})


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
        return self.state_type in FINAL


def cancelled(message: str) -> Any:
    """Return what a flow returns that a person cancelled: a state, in which Prefect ends it."""
    return Cancelled(message=message)


def start_campaign(parameters: Mapping[str, Any]) -> str:
    """Start the flow ``run-campaign`` and return the id of its run."""
    campaign_id = parameters.get("campaign_id")
    with api() as client:
        deployment = client.read_deployment_by_name(f"{RUN_CAMPAIGN}/{RUN_CAMPAIGN}")
        flow_run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(parameters),
            tags=[campaign_tag(campaign_id)] if campaign_id else [],
        )
    return str(flow_run.id)


def run_state(run_id: str) -> RunState:
    """Return the present state of a run."""
    with api() as client:
        return _state(client.read_flow_run(UUID(run_id)))


def start_evaluation(campaign_id: str, *, round_number: int) -> str:
    """Have a release evaluated; return the id of the run that does it or did it.

    A run that failed is followed by another attempt at the next call.
    """
    with api() as client:
        return _start_once(
            client,
            EVALUATE_RELEASE,
            parameters={"campaign_id": campaign_id, "round_number": round_number},
            tags=[campaign_tag(campaign_id), f"round:{round_number}"],
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


def _start_once(
    client: SyncPrefectClient, flow_name: str, *, parameters: dict[str, Any], tags: list[str]
) -> str:
    earlier = tagged_runs(client, flow_name=flow_name, tags=tags)
    lost = [r for r in earlier if _state(r).state_type in FINAL - {"COMPLETED"}]
    key = "/".join([flow_name, *tags, str(len(lost))])
    request = Request(f"{flow_name}/{flow_name}", parameters, key, tags)
    return start(client, request)


def _state(flow_run: FlowRun) -> RunState:
    state = flow_run.state
    if state is None:
        return RunState(str(flow_run.id), "")
    return RunState(str(flow_run.id), state.type.value, state.message or "")
