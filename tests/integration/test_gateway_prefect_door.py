"""A hostile site at Prefect's door: other sites' runs stay closed, its own keep to the rules."""

import json
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from gateway_stack import hashed
from prefect.client.schemas.filters import FlowRunFilter
from prefect.types._datetime import now as prefect_now

from fl_core.artifacts.documents import to_bytes
from flows.prefect_names import SITE_SESSION, site_pool
from tasks.hello import HELLO_CHECK, own_hello

CLOSED = {"detail": "this is not for this site"}


def send(client, method: str, path: str, body=None):
    content = b"" if body is None else json.dumps(body).encode()
    headers = hashed(content) if body is not None else {}
    return client.request(method, f"/api{path}", content=content, headers=headers)


@pytest.fixture
def north(gateway):
    with gateway.client("north") as client:
        yield client


@pytest.fixture(scope="module")
def runs(gateway):
    """A session run of each of two sites, by site."""
    return {site: gateway.session(site) for site in ("north", "south")}


def test_site_that_has_not_said_hello_gets_no_session(gateway):
    gateway.sites["silent"] = gateway.enrolled("silent")
    path = f"/api/work_pools/{site_pool('silent')}/get_scheduled_flow_runs"
    # A token, because the handshake trusts a new certificate a moment later only.
    token = gateway.token("silent", gateway.signed("silent", "POST", path, b"{}"))

    with gateway.stranger() as client:
        answer = client.post(path, content=b"{}", headers=token)

    assert answer.status_code == 409
    assert "hello" in answer.json()["complaints"][0]


def test_site_of_other_versions_is_told_so_and_gets_no_session(gateway, north, runs):
    old = own_hello("north").model_copy(update={"versions": {"fedloom": "0.0.1"}})
    body = to_bytes(old)
    heard = north.post("/hello", content=body, headers=hashed(body))
    polled = send(north, "POST", "/work_pools/site-north/get_scheduled_flow_runs", {})
    welcome = gateway.say_hello("north")
    again = send(north, "POST", "/work_pools/site-north/get_scheduled_flow_runs", {})

    assert (heard.status_code, polled.status_code) == (409, 409)
    assert "fedloom 0.0.1" in heard.json()["complaints"][0]
    assert polled.json()["complaints"] == heard.json()["complaints"]
    assert (welcome.status_code, again.status_code) == (200, 200)
    assert len(gateway.store.list("hellos/north/")) == 2


def test_hello_of_a_doctor_is_answered_and_the_workers_own_stands(gateway, north, runs):
    gateway.say_hello("north")
    kept = gateway.store.list("hellos/north/")
    old = own_hello("north").model_copy(update={"versions": {"fedloom": "0.0.2"}})
    body = to_bytes(old)

    heard = north.post(HELLO_CHECK, content=body, headers=hashed(body))
    polled = send(north, "POST", "/work_pools/site-north/get_scheduled_flow_runs", {})

    assert heard.status_code == 409
    assert "fedloom 0.0.2" in heard.json()["complaints"][0]
    assert polled.status_code == 200
    assert gateway.store.list("hellos/north/") == kept


def test_hello_in_the_name_of_another_site_is_refused(gateway, north):
    body = to_bytes(own_hello("south"))

    answer = north.post("/hello", content=body, headers=hashed(body))

    assert answer.status_code == 403


def test_site_is_handed_its_own_runs_and_no_others(gateway, north, runs):
    gateway.say_hello("north")
    body = {"scheduled_before": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}

    answer = send(north, "POST", "/work_pools/site-north/get_scheduled_flow_runs", body)

    handed = {each["flow_run"]["id"] for each in answer.json()}
    assert runs["north"] in handed
    assert runs["south"] not in handed


def closed_requests(runs) -> dict[str, tuple]:
    other = runs["south"]
    state = {"state": {"type": "COMPLETED"}}
    log = {"flow_run_id": other, "level": 20, "message": "x", "name": "y", "timestamp": "z"}
    return {
        "pool of another": ("GET", "/work_pools/site-south"),
        "pool of the coordinator": ("GET", "/work_pools/coordinator"),
        "runs for another": ("POST", "/work_pools/site-south/get_scheduled_flow_runs", {}),
        "heartbeat for another": (
            "POST",
            "/work_pools/site-south/workers/heartbeat",
            {"name": "w"},
        ),
        "run of another": ("GET", f"/flow_runs/{other}"),
        "run that is not there": ("GET", f"/flow_runs/{UUID(int=7)}"),
        "state of another": ("POST", f"/flow_runs/{other}/set_state", state),
        "change of another": ("PATCH", f"/flow_runs/{other}", {"flow_version": "1"}),
        "all runs": ("POST", "/flow_runs/filter", {}),
        "count of runs": ("POST", "/flow_runs/count", {}),
        "new run": ("POST", "/flow_runs/", {"flow_id": other}),
        "end of a run": ("DELETE", f"/flow_runs/{other}"),
        "all pools": ("POST", "/work_pools/filter", {}),
        "workers": ("POST", "/work_pools/site-north/workers/filter", {}),
        "other pool settings": ("PATCH", "/work_pools/site-north", {"is_paused": True}),
        "log of another": ("POST", "/logs/", [log]),
        "logs": ("POST", "/logs/filter", {}),
        "artifact": ("POST", "/artifacts/", {"flow_run_id": other, "key": "x"}),
        "artifacts": ("POST", "/artifacts/filter", {}),
        "blocks with secrets": ("POST", "/block_documents/filter", {"include_secrets": True}),
        "variables": ("POST", "/variables/filter", {}),
        "new deployment": ("POST", "/deployments/", {"name": "x", "flow_id": other}),
        "settings": ("GET", "/admin/settings"),
        "whole database": ("POST", "/admin/database/clear", {"confirm": True}),
        "all events": ("POST", "/events/filter", {}),
        "climbing": ("GET", "/work_pools/site-north%2f..%2fsite-south"),
    }


NAMES = closed_requests({"south": str(UUID(int=1))})


@pytest.mark.parametrize("name", NAMES)
def test_request_beyond_the_sites_own_is_refused_and_recorded(gateway, north, runs, name):
    method, path, *body = closed_requests(runs)[name]

    answer = send(north, method, path, *body)

    assert answer.status_code == 403
    assert answer.json() in (CLOSED, {"detail": "this is not a request that sites make"})
    assert gateway.recorded(site="north", method=method, status=403)
    assert gateway.prefect.read_flow_run(UUID(runs["south"])).state.is_scheduled()


def test_run_of_another_and_run_that_is_not_there_are_answered_alike(north, runs):
    other = send(north, "GET", f"/flow_runs/{runs['south']}")
    nobodys = send(north, "GET", f"/flow_runs/{uuid4()}")

    assert (other.status_code, other.content) == (nobodys.status_code, nobodys.content)


def test_deployment_and_flow_that_are_not_the_sites_stay_closed(gateway, north):
    own = gateway.prefect.read_deployment_by_name(f"{SITE_SESSION}/north")
    other = gateway.prefect.read_deployment_by_name(f"{SITE_SESSION}/south")
    coordinators = gateway.prefect.read_deployment_by_name("run-campaign/run-campaign")

    statuses = [
        send(north, "GET", path).status_code
        for path in (
            f"/deployments/{own.id}",
            f"/flows/{own.flow_id}",
            f"/deployments/{other.id}",
            f"/deployments/{coordinators.id}",
            f"/flows/{coordinators.flow_id}",
        )
    ]

    assert statuses == [200, 200, 403, 403, 403]


def test_state_keeps_its_type_and_loses_result_text_and_force(gateway, north):
    run = gateway.session("north")
    pickled = {
        "type": "RUNNING",
        "name": "Exfiltrating",
        "message": "row 17 reads as follows",
        # Whoever fetched this result would unpickle what the site wrote under its key.
        "data": {"serializer": {"type": "pickle"}, "storage_key": "updates/north/payload"},
        "state_details": {"transition_id": str(uuid4()), "cache_key": "x"},
    }

    answer = send(north, "POST", f"/flow_runs/{run}/set_state", {"state": pickled, "force": True})

    assert answer.status_code in {200, 201}
    state = gateway.prefect.read_flow_run(UUID(run)).state
    assert (state.type.value, state.name, state.message) == ("RUNNING", "Running", None)
    assert state.data is None
    assert state.state_details.cache_key is None


def test_worker_may_say_how_its_child_ended(gateway, north):
    run = gateway.session("north")
    crashed = {"state": {"type": "CRASHED", "message": "status -9"}}

    assert send(north, "POST", f"/flow_runs/{run}/set_state", crashed).status_code == 201

    assert gateway.prefect.read_flow_run(UUID(run)).state.message == "status -9"


@pytest.mark.parametrize("kind", ["SCHEDULED", "PAUSED", "CANCELLING", "EXPLODED", None])
def test_state_that_sites_do_not_set_is_refused(gateway, north, kind):
    run = gateway.session("north")

    answer = send(north, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind}})

    assert answer.status_code == 403
    assert gateway.prefect.read_flow_run(UUID(run)).state.is_scheduled()


def test_parameters_of_a_session_are_not_the_sites_to_change(gateway, north, runs):
    before = gateway.prefect.read_flow_run(UUID(runs["north"])).parameters
    change = {"parameters": {"campaign_id": "another"}, "flow_version": "1"}

    refused = send(north, "PATCH", f"/flow_runs/{runs['north']}", change)
    taken = send(north, "PATCH", f"/flow_runs/{runs['north']}", {"flow_version": "1"})

    assert (refused.status_code, taken.status_code) == (403, 204)
    assert gateway.prefect.read_flow_run(UUID(runs["north"])).parameters == before


def event_of_task(flow_run: str, task_run: str, **task: object) -> dict:
    moment = prefect_now("UTC").isoformat()
    state = {"type": "COMPLETED", "name": "Completed", "message": "secret", "data": {"x": 1}}
    fields = {"name": "round-0001", "task_key": "client_round", "dynamic_key": task_run}
    return {
        "id": str(uuid4()),
        "event": "prefect.task-run.Completed",
        "occurred": moment,
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run}",
            "prefect.state-timestamp": moment,
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run}",
                "prefect.resource.role": "flow-run",
            }
        ],
        "payload": {
            "validated_state": state,
            "task_run": fields | task,
        },
    }


def task_run_in_prefect(gateway, task_run: str):
    """Wait until Prefect has taken an event up."""
    for _ in range(300):
        answer = httpx.get(f"{gateway.prefect_url}/task_runs/{task_run}")
        if answer.status_code == 200 and answer.json()["state"]:
            return answer.json()
        time.sleep(0.1)
    raise AssertionError(f"task run {task_run} did not arrive")


def test_event_of_the_sites_own_task_arrives_without_text_and_data(gateway, north, runs):
    task_run = str(uuid4())

    answer = send(north, "POST", "/events", [event_of_task(runs["north"], task_run)])

    assert answer.status_code == 204
    found = task_run_in_prefect(gateway, task_run)
    assert (found["name"], found["flow_run_id"]) == ("round-0001", runs["north"])
    assert found["state"]["type"] == "COMPLETED"
    assert not found["state"]["message"]
    assert not found["state"]["data"]


def test_event_that_names_the_run_of_another_is_refused(gateway, north, runs):
    event = event_of_task(runs["south"], str(uuid4()))

    answer = send(north, "POST", "/events", [event])

    assert (answer.status_code, answer.json()) == (403, CLOSED)
    assert gateway.recorded(site="north", path="/api/events", status=403)


def test_event_cannot_rewrite_the_task_of_another_site(gateway, north, runs):
    theirs = str(uuid4())
    with gateway.client("south") as south:
        send(south, "POST", "/events", [event_of_task(runs["south"], theirs)])
    before = task_run_in_prefect(gateway, theirs)

    taken_over = send(north, "POST", "/events", [event_of_task(runs["north"], theirs, name="mine")])
    # The payload of prefect 3.8.8 overrides the ids of the resource.
    own = str(uuid4())
    inside = event_of_task(runs["north"], own, id=theirs, flow_run_id=runs["south"], name="mine")
    passed = send(north, "POST", "/events", [inside])
    arrived = task_run_in_prefect(gateway, own)

    assert (taken_over.status_code, passed.status_code) == (403, 204)
    assert arrived["flow_run_id"] == runs["north"]
    assert task_run_in_prefect(gateway, theirs) == before


@pytest.mark.parametrize(
    "name", ["prefect.flow-run.Crashed", "fedloom.drift.detected", "prefect.worker.started", 7]
)
def test_event_of_another_kind_is_refused(north, runs, name):
    about = {"prefect.resource.id": f"prefect.flow-run.{runs['north']}"}
    event = {"id": str(uuid4()), "event": name, "resource": about}

    answer = send(north, "POST", "/events", [event])

    assert answer.status_code == 403


def test_more_events_than_one_request_may_hold_are_refused(north, runs):
    event = event_of_task(runs["north"], str(uuid4()))

    assert send(north, "POST", "/events", [event] * 201).status_code == 413


@pytest.mark.parametrize("body", [b"", b"[", b"[" * 100_000, b'"text"', b"\xff\xfe\x00\x80"])
def test_body_that_is_no_json_is_refused(gateway, north, runs, body):
    path = f"/api/flow_runs/{runs['north']}/set_state"

    answer = north.post(
        path, content=body, headers=hashed(body) | {"content-length": f"{len(body)}"}
    )

    assert answer.status_code == 422


def test_prefect_has_no_run_that_a_site_made(gateway, runs):
    made = gateway.prefect.read_flow_runs(flow_run_filter=FlowRunFilter(), limit=200)

    assert {run.deployment_id for run in made} <= {
        gateway.prefect.read_deployment_by_name(f"{SITE_SESSION}/{site}").id
        for site in ("north", "south")
    }
