"""What a site may say to Prefect, made anew from what it sent.

Nothing of a site's request is passed on as it came. A state keeps its type and one of the fixed
texts of our worker; result metadata, which would name a serializer to whoever reads it, is not
among the fields. An event keeps what shows a task run in the UI. In Prefect 3.8.8 the fields of the
payload's ``task_run`` go over those of the resource, so an event as sent could rewrite the task run
of another site; here both are made from one checked id. Prefect also writes the task runs of all
sites in one batch and drops the batch where one of them cannot be written, so numbers and times
stay within what its tables hold.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException

from flows.egress_rules import WORKER_TEXTS

MAX_EVENTS = 200
_STATES = frozenset({"PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_STATES_OF_TASKS = _STATES | {"SCHEDULED"}
_NAMES = {"TimedOut": "FAILED"}
_PLAIN = re.compile(r"[A-Za-z0-9 _.:@/+-]{0,200}")
_TASK_RUN = "prefect.task-run."
_FLOW_RUN = "prefect.flow-run."
_HEARTBEAT = "prefect.flow-run.heartbeat"
_TASK_RUN_TEXTS = ("name", "task_key", "dynamic_key")
_TASK_RUN_COUNTS = ("run_count", "flow_run_run_count")
_MAX_COUNT = 10**6
_MAX_RUN_TIME_S = 10**8
_YEARS = range(1970, 2101)
_TASK_RUN_TIMES = ("expected_start_time", "start_time", "end_time", "next_scheduled_start_time")
_PATCHABLE = frozenset({"flow_version", "empirical_policy", "infrastructure_pid"})


@dataclass(frozen=True, slots=True)
class CleanEvent:
    """An event that may be passed on once its runs are known to be the site's.

    Attributes:
        flow_run: The flow run that it is about.
        task_run: The task run that it is about, or None.
        plain: The event.
    """

    flow_run: UUID
    task_run: UUID | None
    plain: dict[str, Any]


def parsed(body: bytes, kind: type[Any]) -> Any:
    """Read a body as JSON.

    Raises:
        HTTPException: 422, it is no JSON (NaN is none), or another kind of value.
    """
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise HTTPException(422, f"the body is no JSON {kind.__name__}")
    return value


def _no_number(name: str) -> Any:
    msg = f"{name} is no number of JSON"
    raise ValueError(msg)


def clean_state(body: bytes) -> dict[str, Any]:
    """Return the body of a ``set_state`` with nothing in it that a site may not say.

    Raises:
        HTTPException: 403, a state that sites do not set; 422, no state.
    """
    state = _mapping(parsed(body, dict), "state")
    plain = _state(state, allowed=_STATES)
    details = state.get("state_details")
    transition = _uuid(details.get("transition_id")) if isinstance(details, dict) else None
    if transition is not None:
        # Prefect recognises a request that was repeated by it.
        plain["state_details"] = {"transition_id": str(transition)}
    message = state.get("message")
    if isinstance(message, str) and WORKER_TEXTS.fullmatch(message):
        plain["message"] = message
    return {"state": plain, "force": False}


def clean_patch(body: bytes) -> dict[str, Any]:
    """Return what of a change to a flow run is passed on: the flow's version, or nothing.

    Raises:
        HTTPException: 403, another field is to be changed.
    """
    asked = parsed(body, dict)
    if not asked.keys() <= _PATCHABLE:
        raise HTTPException(403, "this is not a site's to change about a run")
    return _texts(asked, ("flow_version",))


def clean_poll(body: bytes) -> dict[str, Any]:
    """Return a question for scheduled runs: until when, and not too many."""
    asked = parsed(body, dict)
    return {"limit": 10, **_times(asked, ("scheduled_before",))}


def clean_heartbeat(body: bytes, *, site: str) -> dict[str, Any]:
    """Return the heartbeat of a site's worker, which has the site's name.

    Each other name would be one more row that Prefect never removes.

    Raises:
        HTTPException: 422, it has another name.
    """
    asked = parsed(body, dict)
    name, interval = asked.get("name"), asked.get("heartbeat_interval_seconds")
    if name != site:
        raise HTTPException(422, "the worker has another name than its site")
    plain: dict[str, Any] = {"name": name}
    if isinstance(interval, int | float) and 1 <= interval <= 3600:  # noqa: PLR2004  an hour
        plain["heartbeat_interval_seconds"] = int(interval)
    return plain


def clean_events(body: bytes) -> list[CleanEvent]:
    """Return events of task runs and heartbeats of flow runs, made anew.

    Raises:
        HTTPException: 403, an event that sites do not send; 413, too many; 422, no events.
    """
    sent = parsed(body, list)
    if len(sent) > MAX_EVENTS:
        raise HTTPException(413, f"{len(sent)} events in one request, at most {MAX_EVENTS}")
    return [_event(each) for each in sent]


def _event(sent: Any) -> CleanEvent:
    if not isinstance(sent, dict):
        raise HTTPException(422, "an event is no JSON object")
    resource, name = _mapping(sent, "resource"), sent.get("event")
    about = str(resource.get("prefect.resource.id", ""))
    plain: dict[str, Any] = {"event": name, "id": str(_uuid(sent.get("id")) or _no_event())}
    plain |= _times(sent, ("occurred",))
    follows = _uuid(sent.get("follows"))
    if follows is not None:
        plain["follows"] = str(follows)
    if name == _HEARTBEAT:
        flow_run = _uuid(about.removeprefix(_FLOW_RUN)) or _no_event()
        plain["resource"] = {"prefect.resource.id": f"{_FLOW_RUN}{flow_run}"}
        return CleanEvent(flow_run, None, plain)
    task_run = _uuid(about.removeprefix(_TASK_RUN)) or _no_event()
    flow_run = _flow_run_of(sent) or _no_event()
    return CleanEvent(flow_run, task_run, plain | _of_task(sent, task_run, flow_run))


def _of_task(sent: dict[str, Any], task_run: UUID, flow_run: UUID) -> dict[str, Any]:
    payload = _mapping(sent, "payload")
    state = _state(_mapping(payload, "validated_state"), allowed=_STATES_OF_TASKS)
    name = state.get("name", state["type"].capitalize())
    before = payload.get("initial_state")
    initial = _state(before, allowed=_STATES_OF_TASKS) if isinstance(before, dict) else None
    run = _mapping(payload, "task_run")
    shown = _texts(run, _TASK_RUN_TEXTS)
    return {
        "event": f"{_TASK_RUN}{name}",
        "resource": {
            "prefect.resource.id": f"{_TASK_RUN}{task_run}",
            "prefect.resource.name": shown.get("name", ""),
            "prefect.state-name": name,
            "prefect.state-type": state["type"],
            # Without it Prefect shows no task run.
            "prefect.orchestration": "client",
            **_times(_mapping(sent, "resource"), ("prefect.state-timestamp",)),
        },
        "related": [
            {
                "prefect.resource.id": f"{_FLOW_RUN}{flow_run}",
                "prefect.resource.role": "flow-run",
            }
        ],
        "payload": {
            "intended": {"from": initial["type"] if initial else None, "to": state["type"]},
            "initial_state": initial,
            "validated_state": state | {"name": name, "state_details": {}, "data": None},
            "task_run": shown
            | {n: run[n] for n in _TASK_RUN_COUNTS if _is_count(run.get(n))}
            | {n: run[n] for n in ("total_run_time",) if _is_run_time(run.get(n))}
            | _times(run, _TASK_RUN_TIMES),
        },
    }


def _flow_run_of(sent: dict[str, Any]) -> UUID | None:
    related = sent.get("related")
    found = {
        str(each.get("prefect.resource.id", ""))
        for each in (related if isinstance(related, list) else [])
        if isinstance(each, dict) and each.get("prefect.resource.role") == "flow-run"
    }
    # Two of them would leave it to Prefect which one counts.
    return _uuid(found.pop().removeprefix(_FLOW_RUN)) if len(found) == 1 else None


def _state(state: Mapping[str, Any], *, allowed: frozenset[str]) -> dict[str, Any]:
    kind, name = state.get("type"), state.get("name")
    if not isinstance(kind, str) or kind not in allowed:
        raise HTTPException(403, "this state is not a site's to set")
    is_known = isinstance(name, str) and (name == kind.capitalize() or _NAMES.get(name) == kind)
    return {"type": kind, "name": name} if is_known else {"type": kind}


def _no_event() -> UUID:
    raise HTTPException(403, "this event is not a site's to send")


def _mapping(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise HTTPException(422, f"the body has no {name}")
    return found


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _texts(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: value.get(name) for name in names}
    return {
        n: text for n, text in found.items() if isinstance(text, str) and _PLAIN.fullmatch(text)
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_run_time(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value <= _MAX_RUN_TIME_S


def _times(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: _time(value.get(name)) for name in names}
    return {name: moment.isoformat() for name, moment in found.items() if moment is not None}


def _time(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    is_plain = moment is not None and moment.tzinfo is not None and moment.year in _YEARS
    return moment if is_plain else None
