"""What a site may say to Prefect is made anew: nothing of its own choosing is left in it."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from starlette.exceptions import HTTPException

from flows.gateway import prefect_words as words

RUN, TASK, EVENT = (str(UUID(int=n)) for n in (1, 2, 3))
MOMENT = datetime(2026, 3, 1, tzinfo=UTC).isoformat()


def body(value) -> bytes:
    return json.dumps(value).encode()


def event(**changes):
    resource = {"prefect.resource.id": f"prefect.task-run.{TASK}"}
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{RUN}",
        "prefect.resource.role": "flow-run",
    }
    return {
        "id": EVENT,
        "event": "prefect.task-run.Completed",
        "occurred": MOMENT,
        "resource": resource,
        "related": [flow_run],
        "payload": {
            "validated_state": {"type": "COMPLETED", "name": "Completed"},
            "task_run": {"name": "round-0001", "task_key": "k", "dynamic_key": "0"},
        },
    } | changes


@pytest.mark.parametrize(
    ("message", "kept"),
    [("status -9", True), ("worker lost", True), ("claim lost", True), ("row 17: Ada", False)],
)
def test_state_keeps_only_the_fixed_texts_of_the_worker(message, kept):
    clean = words.clean_state(body({"state": {"type": "CRASHED", "message": message}}))

    assert clean["state"].get("message") == (message if kept else None)


def test_state_is_its_type_and_a_known_name():
    sent = {"type": "FAILED", "name": "TimedOut", "data": {"serializer": "pickle"}, "id": EVENT}

    clean = words.clean_state(body({"state": sent, "force": True}))

    assert clean == {"state": {"type": "FAILED", "name": "TimedOut"}, "force": False}


@pytest.mark.parametrize("name", ["Anything", "Failed", 7, None])
def test_name_that_is_not_the_types_own_is_dropped(name):
    clean = words.clean_state(body({"state": {"type": "COMPLETED", "name": name}}))

    assert clean["state"] == {"type": "COMPLETED"}


def test_event_of_a_task_run_is_bound_to_one_flow_run():
    clean = words.clean_events(body([event()]))[0]

    assert (clean.flow_run, clean.task_run) == (UUID(RUN), UUID(TASK))
    assert clean.plain["payload"]["task_run"].keys() == {"name", "task_key", "dynamic_key"}


def test_payload_cannot_name_other_ids_texts_or_data():
    other = str(UUID(int=99))
    sent = event()
    sent["payload"]["task_run"] |= {"id": other, "flow_run_id": other, "state": {"type": "FAILED"}}
    sent["payload"]["validated_state"] |= {"message": "Ada", "data": {"x": 1}, "id": other}
    sent["resource"] |= {"prefect.state-message": "Ada", "anything": other}

    clean = words.clean_events(body([sent]))[0].plain

    shown = json.dumps(clean)
    assert other not in shown
    assert "Ada" not in shown
    assert clean["payload"]["validated_state"]["data"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"related": []},
        {"related": "none"},
        {
            "related": [
                *event()["related"],
                *event(
                    related=[
                        {
                            "prefect.resource.id": f"prefect.flow-run.{TASK}",
                            "prefect.resource.role": "flow-run",
                        }
                    ]
                )["related"],
            ]
        },
        {"resource": {"prefect.resource.id": "prefect.task-run.all"}},
        {"resource": {"prefect.resource.id": f"prefect.block-document.{TASK}"}},
        {"id": "mine"},
        {"event": "prefect.flow-run.heartbeat"},
        {"payload": event()["payload"] | {"validated_state": {"type": "PAUSED"}}},
    ],
    ids=["no run", "no list", "two runs", "no id", "a block", "no event id", "not a run", "paused"],
)
def test_event_that_is_not_of_one_run_is_refused(changes):
    with pytest.raises(HTTPException) as refused:
        words.clean_events(body([event(**changes)]))

    assert refused.value.status_code == 403


def test_heartbeat_of_a_run_is_its_id_and_nothing_else():
    about = {"prefect.resource.id": f"prefect.flow-run.{RUN}", "prefect.resource.name": "Ada"}
    sent = event(event="prefect.flow-run.heartbeat", resource=about, payload={"note": "Ada"})

    clean = words.clean_events(body([sent]))[0]

    assert (clean.flow_run, clean.task_run) == (UUID(RUN), None)
    assert clean.plain == {
        "event": "prefect.flow-run.heartbeat",
        "id": EVENT,
        "occurred": MOMENT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{RUN}"},
    }


def test_poll_asks_for_few_runs_of_the_whole_pool():
    sent = {"scheduled_before": MOMENT, "limit": 10_000, "work_queue_names": ["new-queue"]}

    assert words.clean_poll(body(sent)) == {"limit": 10, "scheduled_before": MOMENT}


@pytest.mark.parametrize("name", ["", None, "south", "north-2", "north\n", {"x": 1}])
def test_worker_of_another_name_than_its_site_is_refused(name):
    with pytest.raises(HTTPException):
        words.clean_heartbeat(body({"name": name}), site="north")


def test_sign_of_life_is_a_name_and_an_interval():
    sent = {"name": "north", "heartbeat_interval_seconds": 10, "metadata": {"x": "Ada"}}

    assert words.clean_heartbeat(body(sent), site="north") == {
        "name": "north",
        "heartbeat_interval_seconds": 10,
    }


@pytest.mark.parametrize(
    ("field", "value", "is_kept"),
    [
        ("run_count", 3, True),
        # PostgreSQL's INTEGER ends at 2**31 - 1, and Prefect drops the whole batch beyond it.
        ("run_count", 2**40, False),
        ("flow_run_run_count", True, False),
        ("run_count", 1.5, False),
        ("total_run_time", 12.5, True),
        # A timedelta ends at 999,999,999 days.
        ("total_run_time", 1e300, False),
        ("total_run_time", -1, False),
        ("start_time", "2026-03-01T00:00:00+00:00", True),
        ("start_time", "0001-01-01T00:00:00+00:00", False),
        ("start_time", "9999-12-31T23:59:59+00:00", False),
    ],
)
def test_number_or_time_that_prefects_tables_cannot_hold_is_left_out(field, value, is_kept):
    sent = event()
    sent["payload"]["task_run"][field] = value

    clean = words.clean_events(body([sent]))[0].plain

    assert clean["payload"]["task_run"].get(field) == (value if is_kept else None)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_number_that_json_does_not_have_is_refused(number):
    sent = body([event()]).replace(b'"dynamic_key": "0"', f'"run_count": {number}'.encode())

    with pytest.raises(HTTPException) as refused:
        words.clean_events(sent)

    assert refused.value.status_code == 422


def test_time_is_written_anew_and_so_holds_nothing_that_has_no_utf_8():
    sent = {"scheduled_before": "2026-03-01\ud80000:00:00+00:00"}

    assert words.clean_poll(body(sent)) == {"limit": 10, "scheduled_before": MOMENT}


def test_number_written_too_large_for_a_float_is_left_out():
    sent = body([event()]).replace(b'"dynamic_key": "0"', b'"total_run_time": 1e999')

    clean = words.clean_events(sent)[0].plain

    assert "total_run_time" not in clean["payload"]["task_run"]
