"""Registration and dispatch against a real Prefect server, with states set as workers set them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import PickleSerializer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import Cancelling, Completed, Crashed, Pending, Running
from registered_api import registered_api
from session_states import ensure_sessions, session_runs

from fl_core.errors import ServerFailed
from flows import dispatch, registration, sessions
from flows.processes import free_port

ROOT = Path(__file__).parents[2]
SITES = ("north", "south")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with registered_api(tmp_path_factory.mktemp("prefect"), sites=SITES) as made:
        yield made


def _set(client: SyncPrefectClient, run_id: str, *states: object) -> None:
    for state in states:
        client.set_flow_run_state(UUID(run_id), state)


def _runs_of(client: SyncPrefectClient, campaign_id: str) -> int:
    return sum(f"campaign:{campaign_id}" in run.tags for run in client.read_flow_runs(limit=200))


def test_registering_again_changes_nothing_and_keeps_schedules(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name("run-campaign/run-campaign")
    daily = IntervalSchedule(
        interval=timedelta(days=1), anchor_date=datetime(2030, 1, 1, tzinfo=UTC)
    )
    client.create_deployment_schedules(
        deployment.id, [DeploymentScheduleCreate(schedule=daily, active=True)]
    )
    before = {d.id: (d.name, d.work_pool_name) for d in client.read_deployments()}

    registration.register(sites=SITES)

    assert {d.id: (d.name, d.work_pool_name) for d in client.read_deployments()} == before
    assert len(client.read_deployment_schedules(deployment.id)) == 1


def test_pools_have_their_types_and_limits(client: SyncPrefectClient) -> None:
    found = {p.name: (p.type, p.concurrency_limit) for p in client.read_work_pools()}

    assert found == {
        "coordinator": ("process", None),
        "evaluation": ("fedloom-site", None),
        "site-north": ("fedloom-site", 1),
        "site-south": ("fedloom-site", 1),
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("run-campaign/run-campaign", {"campaign_id", "campaign", "rounds", "quorum", "grace_s"}),
        ("site-session/north", {"campaign_id", "run", "site"}),
        ("evaluate-release/evaluate-release", {"campaign_id", "round_number"}),
        ("lock-campaign/lock-campaign", {"text_sha256", "attempt"}),
    ],
)
def test_start_form_lists_the_parameters_of_the_flow(
    client: SyncPrefectClient, name: str, parameters: set[str]
) -> None:
    schema = client.read_deployment_by_name(name).parameter_openapi_schema

    assert set((schema or {})["properties"]) == parameters


def test_start_form_of_a_campaign_has_help_and_limits(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name("run-campaign/run-campaign")
    fields = (deployment.parameter_openapi_schema or {})["properties"]

    assert all(field.get("description") for field in fields.values())
    assert "never for less" in fields["quorum"]["description"]
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(deployment.id, parameters={"rounds": -1})
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(deployment.id, parameters={"grace_s": -1})


def test_deployments_of_sites_and_evaluation_name_no_code(client: SyncPrefectClient) -> None:
    labels = [d for d in client.read_deployments() if d.work_pool_name != "coordinator"]

    assert len(labels) == 4
    for deployment in labels:
        assert (deployment.entrypoint, deployment.path, deployment.pull_steps) == (None, None, [])


def test_server_refuses_job_variables_for_a_site(client: SyncPrefectClient) -> None:
    deployment = client.read_deployment_by_name("site-session/north")

    with pytest.raises(PrefectHTTPStatusError, match="422"):
        client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"campaign_id": "c", "run": "r", "site": "north"},
            job_variables={"command": "touch planted"},
        )


def test_registering_imports_no_torch() -> None:
    code = (
        "import sys; from flows.registration import deployments; from prefect.utilities.callables"
    )
    code += " import parameter_schema_from_entrypoint as read; "
    code += "[read(d.source) for d in deployments(['x'])]; "
    code += "print([m for m in ('torch', 'peft', 'great_expectations') if m in sys.modules])"

    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )

    assert shown.stdout.strip() == "[]"


def test_prefect_yaml_states_what_register_makes(client: SyncPrefectClient, tmp_path: Path) -> None:
    path = ROOT / "deployments" / "prefect.yaml"
    stated = yaml.safe_load(path.read_text())["deployments"]
    made = [d for d in registration.deployments([]) if d.entrypoint is not None]
    assert [(d["name"], d["entrypoint"], d["work_pool"]["name"]) for d in stated] == [
        (d.name, d.entrypoint, d.pool) for d in made
    ]
    compared = {"description", "entrypoint", "tags", "enforce_parameter_schema", "pull_steps"}
    compared |= {"work_pool_name", "parameter_openapi_schema", "parameters", "flow_id", "path"}
    before = client.read_deployment_by_name(made[0].full_name)

    subprocess.run(
        [
            *(sys.executable, "-m", "prefect", "--no-prompt", "deploy"),
            "--prefect-file",
            path,
            "--all",
        ],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": str(client.api_url), "PREFECT_HOME": str(tmp_path)},
        check=True,
        timeout=120,
        capture_output=True,
    )

    after = client.read_deployment_by_name(made[0].full_name)
    assert after.id == before.id
    assert after.model_dump(include=compared) == before.model_dump(include=compared)


def test_every_site_gets_one_session_however_often_it_is_asked(client: SyncPrefectClient) -> None:
    ensure_sessions("often", sites=SITES, run="r1")
    first = session_runs("often")
    _set(client, first["north"].run_id, Pending(), Running())

    ensure_sessions("often", sites=SITES, run="r1")

    again = session_runs("often")
    assert {site: s.run_id for site, s in again.items()} == {
        site: s.run_id for site, s in first.items()
    }
    assert {site: (s.run, s.state_type) for site, s in again.items()} == {
        "north": ("r1", "RUNNING"),
        "south": ("r1", "SCHEDULED"),
    }
    run = client.read_flow_run(UUID(first["north"].run_id))
    assert run.name == "north"
    assert run.parameters == {"campaign_id": "often", "run": "r1", "site": "north"}
    assert {"campaign:often", "site:north"} <= set(run.tags)


def test_coordinators_that_race_start_one_session(client: SyncPrefectClient) -> None:
    def ask(_: int) -> None:
        with temporary_settings({PREFECT_API_URL: str(client.api_url)}):
            ensure_sessions("race", sites=("north",), run="r1")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))

    assert _runs_of(client, "race") == 1


def test_lost_session_is_started_again_at_once_and_then_after_pauses(
    client: SyncPrefectClient,
) -> None:
    ensure_sessions("lost", sites=("north",), run="r1")
    first = session_runs("lost")["north"].run_id
    _set(client, first, Pending(), Running(), Crashed())

    ensure_sessions("lost", sites=("north",), run="r1")
    second = session_runs("lost")["north"].run_id
    _set(client, second, Pending(), Running(), Crashed())
    ensure_sessions("lost", sites=("north",), run="r1")

    latest = session_runs("lost")["north"]
    assert second != first
    assert (latest.run_id, latest.attempts) == (second, 2)


def test_next_campaign_run_gets_a_session_of_its_own_at_once(client: SyncPrefectClient) -> None:
    for run in ("r1", "r2", "r3"):
        ensure_sessions("resumed", sites=("north",), run=run)
        _set(
            client,
            session_runs("resumed")["north"].run_id,
            Pending(),
            Running(),
            Completed(),
        )

    latest = session_runs("resumed")["north"]
    assert (latest.run, latest.attempts) == ("r3", 3)


def test_cancelling_ends_what_waits_and_asks_what_runs(client: SyncPrefectClient) -> None:
    ensure_sessions("cancel", sites=SITES, run="r1")
    _set(client, session_runs("cancel")["north"].run_id, Pending(), Running())

    assert dispatch.cancel_sessions("cancel", runs=["other"]) == 0
    assert dispatch.cancel_sessions("cancel") == 2

    states = {site: s.state_type for site, s in session_runs("cancel").items()}
    assert states == {"north": "CANCELLING", "south": "CANCELLED"}


def test_session_that_nobody_stops_is_cancelled_after_a_grace(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_sessions("grace", sites=("north",), run="r1")
    run_id = session_runs("grace")["north"].run_id
    _set(client, run_id, Pending(), Running(), Cancelling())
    dispatch.cancel_sessions("grace")
    assert dispatch.run_state(run_id).state_type == "CANCELLING"
    monkeypatch.setattr(sessions, "_CANCEL_GRACE_S", 0.0)

    dispatch.cancel_sessions("grace")

    assert dispatch.run_state(run_id).state_type == "CANCELLED"


def test_evaluation_runs_once_and_again_only_after_a_failure(client: SyncPrefectClient) -> None:
    first = dispatch.start_evaluation("evaluated", round_number=1)
    same = dispatch.start_evaluation("evaluated", round_number=1)
    other = dispatch.start_evaluation("evaluated", round_number=2)
    _set(client, first, Pending(), Running(), Crashed())
    second = dispatch.start_evaluation("evaluated", round_number=1)
    _set(client, second, Pending(), Running(), Completed())

    assert same == first
    assert len({first, second, other}) == 3
    assert dispatch.start_evaluation("evaluated", round_number=1) == second
    assert dispatch.wait_final(second, timeout_s=5) == "COMPLETED"
    assert dispatch.evaluate("evaluated", 1)


def test_evaluation_without_a_worker_is_given_up(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_START_S", 0.5)

    assert not dispatch.evaluate("nobody", 1)
    assert _runs_of(client, "nobody") == 1


def test_lock_runs_once_per_attempt(client: SyncPrefectClient) -> None:
    first = dispatch.lock_campaign("ab" * 32, attempt="one")

    assert dispatch.lock_campaign("ab" * 32, attempt="one") == first
    assert dispatch.lock_campaign("ab" * 32, attempt="two") != first
    assert dispatch.wait_final(first, timeout_s=0) == "SCHEDULED"


class _Payload:
    """What a hostile site stores: unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_result_that_a_site_names_is_never_read(client: SyncPrefectClient, tmp_path: Path) -> None:
    # prefect 3.8.8: whoever sets a state names the serializer and the object that a reader loads.
    planted = tmp_path / "planted"
    metadata = ResultRecordMetadata(
        storage_key=str(tmp_path / "evil"), serializer=PickleSerializer(picklelib="pickle")
    )
    record = ResultRecord(result=_Payload(planted), metadata=metadata)
    (tmp_path / "evil").write_bytes(record.serialize())
    ensure_sessions("hostile", sites=("north",), run="r1")
    run_id = session_runs("hostile")["north"].run_id
    _set(client, run_id, Pending(), Running())
    state = {"type": "COMPLETED", "data": metadata.model_dump(mode="json")}
    httpx.post(
        f"{client.api_url}flow_runs/{run_id}/set_state", json={"state": state, "force": True}
    ).raise_for_status()

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path}):
        ensure_sessions("hostile", sites=("north",), run="r1")
        states = (dispatch.wait_final(run_id, timeout_s=1), dispatch.run_state(run_id).state_type)
        session_runs("hostile")
        dispatch.cancel_sessions("hostile")
        assert states == ("COMPLETED", "COMPLETED")
        assert not planted.exists()

        # The trap is real: reading the result as Prefect offers it would have run the site's code.
        client.read_flow_run(UUID(run_id)).state.result(raise_on_failure=False, _sync=True)
    assert planted.exists()


def test_unregistered_site_is_one_clear_error(client: SyncPrefectClient) -> None:
    with pytest.raises(ServerFailed, match="expected it to be registered; enrol the site"):
        ensure_sessions("unknown", sites=("nowhere",), run="r1")


def test_absent_server_is_one_clear_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"

    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(ServerFailed, match="no prefect server answers at"),
    ):
        session_runs("any")
