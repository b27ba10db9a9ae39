"""A home's servers come up together, keep sites apart, and come back after any end."""

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_sites import NORTH, PLAN, SOUTH, coordinator_store, gateway_store, site_store, wait_for

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import from_bytes
from fl_core.errors import CampaignError, PortInUse, ServerFailed, StoreUnavailable
from fl_core.privacy.ledger_documents import LedgerEntry
from flows import local_stack
from flows.health import Addresses, servers
from flows.local_federation import make_local_federation
from flows.local_stack import Stack, connect, require_alive, start, stop
from flows.local_workers import (
    environment,
    evaluation_environment,
    register_pools,
    site_environment,
    start_coordinator_worker,
    start_worker,
)
from flows.process_guard import members
from flows.processes import children, ended_with_this_process, free_port, is_alive
from flows.stack_file import MLFLOW_BUCKET, Stated, read_stack_file
from tasks.object_store import S3Store, require_write_once
from tasks.settings import open_store, read_settings


def ask(url: str, *, method: str = "GET", body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return response.read()


def make_experiment(stack: Stack, name: str) -> None:
    url = f"{stack.mlflow_url}/api/2.0/mlflow/experiments/create"
    ask(url, method="POST", body=json.dumps({"name": name}).encode())


def experiments(stack: Stack) -> set[str]:
    url = f"{stack.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=100"
    return {each["name"] for each in json.loads(ask(url))["experiments"]}


def pools(stack: Stack) -> set[str]:
    url = f"{stack.prefect_url}/api/work_pools/filter"
    return {each["name"] for each in json.loads(ask(url, method="POST", body=b"{}"))}


def test_every_server_does_what_campaigns_ask(stack):
    addresses = Addresses(
        prefect_api=f"{stack.prefect_url}/api",
        mlflow=stack.mlflow_url,
        store_environment=environment(stack),
    )

    checks = {check.name: check for check in servers(addresses)}

    assert set(checks) == {
        *("prefect", "mlflow", "store"),
        *("clock of prefect", "clock of mlflow", "clock of store"),
    }
    assert [check for check in checks.values() if check.verdict != "ok"] == []


def test_pages_of_both_servers_are_served(stack):
    assert b"<html" in ask(stack.prefect_url).lower()
    assert b"<html" in ask(stack.mlflow_url).lower()


def test_mlflow_keeps_artifacts_in_its_own_bucket(stack):
    path = "/api/2.0/mlflow-artifacts/artifacts/probe/file.txt"

    ask(stack.mlflow_url + path, method="PUT", body=b"through the server")

    store = coordinator_store(stack)
    assert isinstance(store, S3Store)
    listed = store.client.list_objects_v2(Bucket=MLFLOW_BUCKET, Prefix="probe/")
    assert [each["Key"] for each in listed["Contents"]] == ["probe/file.txt"]


def test_stack_keeps_a_ledger_of_the_federation_that_sites_read_and_only_it_writes(stack):
    make_local_federation(stack)
    make_local_federation(stack)

    ledger = Below(site_store(stack, "north"), keys.FEDERATION)
    entry = from_bytes(LedgerEntry, ledger.get(keys.ledger_entry(1)), what="entry")
    assert (entry.kind, entry.unit) == ("genesis", "site")
    assert ledger.list(keys.LEDGER) == [keys.ledger_entry(1)]
    with pytest.raises(StoreUnavailable):
        ledger.put_once(keys.ledger_entry(2), b"forged")
    with pytest.raises(StoreUnavailable):
        ledger.discard(keys.ledger_entry(1))


def test_evaluation_worker_reads_releases_and_no_update_and_writes_its_results(stack):
    own = open_store(read_settings(evaluation_environment(stack)))
    result = PLAN.replace("plan", "evaluation")
    coordinator_store(stack).put_once(PLAN, b"plan")
    coordinator_store(stack).put_once(SOUTH, b"raw")

    assert own.get(PLAN) == b"plan"
    assert own.put_once(result, b"{}")
    assert own.get(result) == b"{}"
    with pytest.raises(StoreUnavailable):
        own.get(SOUTH)
    for key in (SOUTH.replace("manifest", "forged"), PLAN.replace("plan", "outcome")):
        with pytest.raises(StoreUnavailable):
            own.put_once(key, b"forged")
    assert stack.file.coordinator.secret_key not in json.dumps(evaluation_environment(stack))


def test_settings_of_a_stack_have_results_as_json_and_nothing_persisted(stack):
    for settings in (environment(stack), site_environment(stack, "north")):
        assert settings["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
        assert settings["PREFECT_RESULTS_PERSIST_BY_DEFAULT"] == "false"


def test_running_stack_is_found_and_not_started_twice(stack):
    before = stack.processes()

    again = start(stack.home)

    assert connect(stack.home) == again
    assert again.processes() == before


def test_stack_that_runs_otherwise_than_stated_is_refused_and_goes_on(stack):
    port = stack.file.prefect_port

    with pytest.raises(CampaignError, match=r"runs with gateway hosts none.*fedloom down"):
        start(stack.home, stated=Stated(prefect_port=port, gateway_hosts=("fl.example.org",)))

    assert connect(stack.home) == start(stack.home, stated=Stated(prefect_port=port))


def test_no_server_was_started_with_a_secret_on_its_command_line(stack):
    secret = stack.file.coordinator.secret_key

    for process in stack.processes().values():
        for pid in members(process.group):
            assert secret not in Path(f"/proc/{pid}/cmdline").read_text()


def test_port_in_use_is_named_and_nothing_is_started(new_home):
    home = new_home()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        with pytest.raises(PortInUse, match=f"port {port} for the prefect server is in use"):
            start(home, stated=Stated(prefect_port=port))

    assert local_stack.recorded_processes(home) == {}
    assert not (home / "postgres").exists()
    assert read_stack_file(home) is None


def test_server_that_fails_ends_the_others_that_were_starting(new_home, stack):
    home = new_home()
    before = {each.pid for each in children()}
    (home / "prefect").write_text("a file where a folder should be")

    with pytest.raises(NotADirectoryError):
        start(home)

    assert {each.pid for each in children()} == before


@pytest.fixture(scope="module")
def second_home(new_home) -> Iterator[Path]:
    home = new_home()
    with ended_with_this_process():
        yield home
        stop(home)


def test_stack_that_was_killed_comes_back_with_its_history_beside_another(second_home, stack):
    first = start(second_home)
    register_pools(first, sites=["north"])
    make_experiment(first, "history")
    gateway_store(first).put_once(NORTH, b"kept")
    worker = start_coordinator_worker(first)
    assert wait_for(lambda: "started" in worker.log_path.read_text())
    killed = first.processes().values()
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    # All of them: a start that finds one alive leaves what was recorded of the others.
    assert wait_for(lambda: not any(is_alive(process) for process in killed))

    second = start(second_home)

    assert second.file == first.file
    assert {"coordinator", "evaluation", "site-north"} <= pools(second)
    assert "history" in experiments(second)
    assert coordinator_store(second).get(NORTH) == b"kept"
    require_write_once(coordinator_store(second))
    assert "history" not in experiments(stack)
    assert coordinator_store(stack).list("campaigns/c9/") == []


def test_process_that_ended_is_reported_with_its_log_and_a_stop_ends_the_rest(second_home):
    stack = start(second_home)
    start_worker(stack, "site north", ["/bin/sh", "-c", "echo no key; exit 4"], {})
    assert wait_for(lambda: local_stack.dead_processes(stack))

    with pytest.raises(ServerFailed, match=r"the site north process ended.*no key"):
        require_alive(stack)

    servers_before = stack.processes()
    stopped = stop(second_home)
    assert set(stopped) >= {"prefect", "mlflow", "s3", "postgres", "gateway"}
    assert all(members(each.group) == [] for each in servers_before.values())
    assert stop(second_home) == []
    assert connect(second_home) is None


def test_stated_database_server_is_used_and_a_wrong_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_POSTGRES_URL", f"postgresql://nobody@127.0.0.1:{free_port()}/x")
    with pytest.raises(ServerFailed, match="PostgreSQL cannot provide the database 'prefect'"):
        start(tmp_path)

    monkeypatch.setenv("FEDLOOM_POSTGRES_URL", "sqlite:///here.db")
    with pytest.raises(CampaignError, match="FEDLOOM_POSTGRES_URL starts with 'sqlite'"):
        start(tmp_path)
    assert not (tmp_path / "postgres").exists()
