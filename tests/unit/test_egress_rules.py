"""What of Prefect's client may leave a site; the shapes are those of Prefect 3.8.8's own models."""

import json
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateDetails
from prefect.states import Completed, Crashed, Failed, to_state_create

from flows.egress_rules import Passes, Stays, judge, outward_event

POOL = "site-north"
RUN = "0f8fad5b-d9cb-469f-a165-70867728950e"
CANARY = "patient-4711-canary"


def set_state(state):
    plain = to_state_create(state).model_dump(mode="json", serialize_as_any=True)
    body = json.dumps({"state": plain, "force": True}).encode()
    return judge("POST", f"/flow_runs/{RUN}/set_state", body, pool=POOL)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/version"),
        ("GET", f"/work_pools/{POOL}"),
        ("GET", f"/flow_runs/{RUN}"),
        ("GET", f"/flows/{RUN}"),
        ("GET", f"/deployments/{RUN}"),
    ],
)
def test_reads_that_a_worker_needs_pass_without_a_body(method, path):
    assert judge(method, path, b"x", pool=POOL) == Passes(b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/work_pools/site-south"),
        ("GET", f"/work_pools/{POOL}/workers"),
        ("GET", f"/flow_runs/{RUN}/../../admin/settings"),
        ("GET", f"/flow_runs/{RUN}/graph"),
        ("GET", f"/flow_runs/{RUN.upper()}"),
        ("GET", "/flow_runs/1"),
        ("GET", "/admin/settings"),
        ("GET", "/block_documents/"),
        ("DELETE", f"/flow_runs/{RUN}"),
        ("PUT", f"/flow_runs/{RUN}"),
        ("POST", "/logs/"),
        ("POST", "/artifacts/"),
        ("POST", "/flow_runs/filter"),
        ("POST", "/flow_runs/"),
        ("POST", "/task_runs/"),
        ("POST", "/events"),
        ("POST", "/work_pools/site-south/get_scheduled_flow_runs"),
        ("POST", "/work_pools/site-south/workers/heartbeat"),
        ("POST", f"/flow_runs/{RUN}/resume"),
        ("PATCH", f"/deployments/{RUN}"),
        ("PATCH", "/work_pools/site-south"),
        ("OPTIONS", f"/flow_runs/{RUN}"),
    ],
)
def test_everything_else_is_refused_and_says_so(method, path):
    verdict = judge(method, path, b"{}", pool=POOL)

    assert isinstance(verdict, Stays)
    assert verdict.status == 403
    assert verdict.reason


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/csrf-token", 422),
        ("PATCH", f"/flow_runs/{RUN}", 204),
        ("PATCH", f"/flow_runs/{RUN}/labels", 204),
        ("PATCH", f"/work_pools/{POOL}", 204),
    ],
)
def test_what_prefect_insists_on_is_answered_at_the_site(method, path, status):
    body = json.dumps({"name": CANARY, "parameters": {"row": CANARY}}).encode()

    verdict = judge(method, path, body, pool=POOL)

    assert isinstance(verdict, Stays)
    assert verdict.status == status


@pytest.mark.parametrize(
    "text", ["status 0", "status -9", "status 137", "worker lost", "claim lost"]
)
def test_fixed_texts_of_a_state_leave(text):
    verdict = set_state(Crashed(message=text))

    assert json.loads(verdict.body)["state"]["message"] == text


@pytest.mark.parametrize(
    "text",
    [CANARY, "status 12345", "status 1 of 2", "status 1\nrow", "worker lost: row", "Status 1", ""],
)
def test_no_other_text_of_a_state_leaves(text):
    verdict = set_state(Failed(message=text))

    assert json.loads(verdict.body) == {
        "state": {"type": "FAILED", "name": "Failed", "state_details": {}},
        "force": False,
    }


def test_result_details_and_names_of_a_state_stay():
    details = StateDetails(
        pause_key=CANARY, cache_key=CANARY, transition_id=uuid4(), traceparent=CANARY
    )
    state = Completed(message="worker lost", name=f"Row {CANARY}", state_details=details)
    # Written as it would be on the wire: the client's own models refuse foreign data.
    plain = to_state_create(state).model_dump(mode="json", serialize_as_any=True)
    plain["data"] = {"serializer": {"type": "pickle"}, "storage_key": CANARY}

    body = json.dumps({"state": plain, "force": True, "more": CANARY}).encode()
    verdict = judge("POST", f"/flow_runs/{RUN}/set_state", body, pool=POOL)

    assert CANARY not in verdict.body.decode()
    assert json.loads(verdict.body) == {
        "state": {
            "type": "COMPLETED",
            "message": "worker lost",
            "state_details": {"transition_id": str(details.transition_id)},
        },
        "force": False,
    }


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"state": 1}', b'{"state": {"type": "SCHEDULED"}}']
)
def test_state_that_is_none_is_refused(body):
    assert isinstance(judge("POST", f"/flow_runs/{RUN}/set_state", body, pool=POOL), Stays)


def test_poll_and_heartbeat_carry_their_named_fields_only():
    when = "2026-01-01T00:00:00+00:00"
    poll = json.dumps({"scheduled_before": when, "work_queue_names": [CANARY]})
    beat = json.dumps(
        {"name": "north", "heartbeat_interval_seconds": 10, "metadata": {"row": CANARY}}
    )

    polled = judge("POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", poll.encode(), pool=POOL)
    beaten = judge("POST", f"/work_pools/{POOL}/workers/heartbeat", beat.encode(), pool=POOL)

    assert json.loads(polled.body) == {"scheduled_before": when}
    assert json.loads(beaten.body) == {"name": "north", "heartbeat_interval_seconds": 10}


def task_event(**changes):
    """An event as Prefect's engine emits it, with a canary in every place that takes text."""
    event = {
        "id": str(uuid4()),
        "occurred": "2026-01-01T00:00:00+00:00",
        "event": "prefect.task-run.Failed",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{uuid4()}",
            "prefect.resource.name": "round-0007",
            "prefect.state-message": CANARY,
            "prefect.state-type": "FAILED",
            "prefect.orchestration": "client",
        },
        "related": [
            {"prefect.resource.id": f"prefect.tag.{CANARY}", "prefect.resource.role": "tag"},
            {
                "prefect.resource.id": f"prefect.flow-run.{RUN}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": "north",
                "more": CANARY,
            },
        ],
        "payload": {
            "intended": {"from": "RUNNING", "to": "FAILED", "more": CANARY},
            "initial_state": {"type": "RUNNING", "name": "Running", "message": CANARY},
            "validated_state": {
                "type": "FAILED",
                "name": "Failed",
                "message": CANARY,
                "state_details": {"cache_key": CANARY},
                "data": {"storage_key": CANARY},
            },
            "task_run": {
                "name": "round-0007",
                "task_key": "client-round-1",
                "dynamic_key": "0",
                "tags": [CANARY],
                "task_inputs": {"row": [CANARY]},
                "labels": {"row": CANARY},
                "run_count": 1,
            },
            "more": CANARY,
        },
    }
    return event | changes


def test_event_of_a_step_leaves_without_a_text():
    event = task_event()

    built = outward_event(event, run_id=RUN)

    assert CANARY not in json.dumps(built)
    assert built["payload"] == {
        "intended": {"from": "RUNNING", "to": "FAILED"},
        "initial_state": {"type": "RUNNING", "name": "Running"},
        "validated_state": {"type": "FAILED", "name": "Failed"},
        "task_run": {
            "name": "round-0007",
            "task_key": "client-round-1",
            "dynamic_key": "0",
            "run_count": 1,
        },
    }
    assert [each["prefect.resource.id"] for each in built["related"]] == [f"prefect.flow-run.{RUN}"]


def test_heartbeat_of_the_run_in_hand_leaves():
    event = task_event(
        event="prefect.flow-run.heartbeat",
        resource={"prefect.resource.id": f"prefect.flow-run.{RUN}", "row": CANARY},
        related=[],
        payload={"row": CANARY},
    )

    built = outward_event(event, run_id=RUN)

    assert built["resource"] == {"prefect.resource.id": f"prefect.flow-run.{RUN}"}
    assert CANARY not in json.dumps(built)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"related": []}, id="of no run"),
        pytest.param(
            {"related": [{"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}]}, id="another run"
        ),
        pytest.param({"event": "rows.seen"}, id="another kind"),
        pytest.param({"event": f"prefect.task-run.{CANARY}"}, id="a text for a state"),
        pytest.param({"event": ["prefect.task-run.Failed"]}, id="no text"),
        pytest.param({"id": f"{CANARY}\n"}, id="a text for an id"),
        pytest.param({"payload": None}, id="no payload"),
        pytest.param({"payload": {"task_run": [], "validated_state": {}}}, id="wrong payload"),
        pytest.param({"resource": None}, id="no resource"),
    ],
)
def test_event_of_another_run_or_kind_stays(changes):
    assert outward_event(task_event(**changes), run_id=RUN) is None


def test_nothing_leaves_while_no_run_is_in_hand():
    assert outward_event(task_event(), run_id="") is None
    assert outward_event([task_event()], run_id=RUN) is None
