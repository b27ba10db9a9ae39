"""What of Prefect's client may leave a site, as pure functions.

Prefect's client is a library of thousands of calls, made for users who trust their server. At a
site a handful are needed, and of their bodies a few fields. So this is a list of what passes, and
bodies are built again from the fields that are named here: whatever a later version of Prefect
adds stays at the site until somebody writes it down. No log line, no text of a state but three
fixed ones, no result, no parameter, no label leaves (SOUNDNESS, rule 18).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

WORKER_TEXTS = re.compile(r"status -?[0-9]{1,4}|worker lost|claim lost")
"""The only texts of a state that leave: a number, or one of two words for what was lost."""

_ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_READ = re.compile(f"/(flow_runs|flows|deployments)/{_ID}")
_RUN = re.compile(f"/flow_runs/{_ID}(/labels)?")
_SET_STATE = re.compile(f"/flow_runs/{_ID}/set_state")
_STATE_TYPES = {"PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "CANCELLING"}
_WORD = re.compile("[A-Za-z]{1,32}")
_TASK_EVENT = re.compile("prefect\\.task-run\\.[A-Za-z]{1,32}")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_PLAIN = re.compile("[A-Za-z0-9 ._:+-]{0,100}")
_RUN_RESOURCE = "prefect.flow-run."
_RESOURCE = "prefect.resource.id"
_OF_RESOURCE = (
    "prefect.resource.id",
    "prefect.resource.name",
    "prefect.resource.role",
    "prefect.run-count",
    "prefect.state-name",
    "prefect.state-timestamp",
    "prefect.state-type",
    "prefect.orchestration",
)
_OF_TASK_RUN = (
    "name",
    "task_key",
    "dynamic_key",
    "run_count",
    "flow_run_run_count",
    "expected_start_time",
    "start_time",
    "end_time",
    "total_run_time",
)


@dataclass(frozen=True, slots=True)
class Passes:
    """A request that may leave.

    Attributes:
        body: What it carries, built from named fields.
    """

    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Stays:
    """A request that is answered on this side.

    Attributes:
        status: What Prefect's client is told.
        reason: For the record; empty: not worth a line, because it asks for nothing.
        detail: Words for Prefect's client.
    """

    status: int
    reason: str = ""
    detail: str = ""


def judge(method: str, path: str, body: bytes, *, pool: str) -> Passes | Stays:
    """Decide about one call of Prefect's client.

    Args:
        method: HTTP method.
        path: Path below ``/api``, without query.
        body: Its body.
        pool: The site's own work pool.
    """
    if method == "GET" and path == "/csrf-token":
        # These words make Prefect's client stop asking; the gateway speaks to the server itself.
        return Stays(HTTPStatus.UNPROCESSABLE_ENTITY, detail="CSRF protection is disabled.")
    if method == "GET" and _is_read(path, pool):
        return Passes()
    if method == "PATCH" and (_RUN.fullmatch(path) or path == f"/work_pools/{pool}"):
        # Name, version, policy and labels of a run, the template of a pool: the coordinator has
        # given both what they need, and Prefect's client goes on when it is told "done".
        return Stays(HTTPStatus.NO_CONTENT, reason="fields of a run or pool")
    if method == "POST":
        return _judge_post(path, body, pool)
    return _refused("not on the list of calls")


def _is_read(path: str, pool: str) -> bool:
    fixed = {"/admin/version", f"/work_pools/{pool}"}
    return path in fixed or _READ.fullmatch(path) is not None


def _judge_post(path: str, body: bytes, pool: str) -> Passes | Stays:
    if path == "/logs/":
        return _refused("log lines stay at the site")
    build = {
        f"/work_pools/{pool}/get_scheduled_flow_runs": _poll,
        f"/work_pools/{pool}/workers/heartbeat": _heartbeat,
    }.get(path)
    if build is None and _SET_STATE.fullmatch(path):
        build = _state
    if build is None:
        return _refused("not on the list of calls")
    found = _object(body)
    built = None if found is None else build(found)
    if built is None:
        return _refused("body is not what this call carries")
    return Passes(json.dumps(built, separators=(",", ":")).encode())


def _refused(reason: str) -> Stays:
    return Stays(HTTPStatus.FORBIDDEN, reason, f"kept at the site: {reason}")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _poll(body: Mapping[str, Any]) -> dict[str, Any]:
    # Names of queues would choose among the site's own runs; there is one queue.
    named = ("scheduled_before", "scheduled_after", "limit")
    return {name: body[name] for name in named if _is_plain(body.get(name, []))}


def _heartbeat(body: Mapping[str, Any]) -> dict[str, Any] | None:
    named = ("name", "heartbeat_interval_seconds", "return_id")
    built = {name: body[name] for name in named if _is_plain(body.get(name, []))}
    return built if "name" in built else None


def _state(body: Mapping[str, Any]) -> dict[str, Any] | None:
    state = body.get("state")
    if not isinstance(state, dict) or state.get("type") not in _STATE_TYPES:
        return None
    built: dict[str, Any] = {"type": state["type"]}
    if _matches(_WORD, state.get("name")):
        built["name"] = state["name"]
    if _matches(WORKER_TEXTS, state.get("message")):
        built["message"] = state["message"]
    details = state.get("state_details")
    if isinstance(details, dict):
        ids = ("flow_run_id", "transition_id")
        built["state_details"] = {i: details[i] for i in ids if _matches(_PLAIN, details.get(i))}
    return {"state": built, "force": False}


def outward_event(event: object, *, run_id: str) -> dict[str, Any] | None:
    """Return what of an event may leave, or None if it stays.

    Args:
        event: What Prefect's client emitted: states of task runs, heartbeats, and more.
        run_id: The run in hand; an event of any other stays.
    """
    if not isinstance(event, dict) or not all(
        _matches(_PLAIN, event.get(name)) for name in ("id", "occurred", "event")
    ):
        return None
    resource, related = event.get("resource"), event.get("related")
    if not isinstance(resource, dict) or not isinstance(related, list):
        return None
    own = _RUN_RESOURCE + run_id
    about = [each for each in related if isinstance(each, dict) and each.get(_RESOURCE) == own]
    built: dict[str, Any] = {name: event[name] for name in ("id", "occurred", "event")}
    if event["event"] == _HEARTBEAT and resource.get(_RESOURCE) == own:
        return built | {"resource": _fields(resource, _OF_RESOURCE), "related": [], "payload": {}}
    payload = _task_payload(event.get("payload"))
    if payload is None or not about or not _TASK_EVENT.fullmatch(event["event"]):
        return None
    if _matches(_PLAIN, event.get("follows")):
        built["follows"] = event["follows"]
    return built | {
        "resource": _fields(resource, _OF_RESOURCE),
        "related": [_fields(about[0], _OF_RESOURCE)],
        "payload": payload,
    }


def _task_payload(payload: object) -> dict[str, Any] | None:
    if not isinstance(payload, dict):
        return None
    task_run, state = payload.get("task_run"), payload.get("validated_state")
    if not isinstance(task_run, dict) or not isinstance(state, dict):
        return None
    intended, initial = payload.get("intended"), payload.get("initial_state")
    return {
        "intended": _fields(intended, ("from", "to")),
        "initial_state": _fields(initial, ("type", "name")) or None,
        "validated_state": _fields(state, ("type", "name")),
        "task_run": _fields(task_run, _OF_TASK_RUN),
    }


def _fields(found: object, names: tuple[str, ...]) -> dict[str, Any]:
    given = found if isinstance(found, dict) else {}
    return {name: given[name] for name in names if _is_plain(given.get(name, []))}


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _PLAIN.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
