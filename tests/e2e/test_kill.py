"""Kill it anywhere: SIGKILL in the middle of a round, then run the campaign again."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex
from flows.local_stack import start
from flows.local_workers import start_workers
from flows.processes import is_alive
from flows.site_worker import HEARTBEAT_S
from flows.worker_leases import MISSED
from tests.e2e.federation import SITES, Federation, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# About ten seconds of training at site-e, so that a kill lands inside it.
STEPS = 20
ZOMBIE_S = MISSED * HEARTBEAT_S
OPEN = {"SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"}


def reserves(federation: Federation, site: str, digest: str) -> list[int]:
    """Rounds of a campaign that a site has charged, in order."""
    document = federation.json("ledger", "--home", str(federation.site_home(site)), "--verify")
    return [
        entry["round"]
        for entry in document["ledgers"][0]["entries"]
        if entry["kind"] == "reserve" and entry["campaign_digest"] == digest
    ]


def entries(federation: Federation, site: str) -> int:
    """How many entries lie in a site's ledger folder."""
    return len(list(federation.site_home(site).glob("ledger/entries/*.json")))


def children_of(pid: int, word: str) -> list[psutil.Process]:
    """Living descendants of a process with a word in their command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def running(federation: Federation, campaign_id: str) -> Iterator[str]:
    """A campaign whose first round is being trained at site-e; yields its digest."""
    file = federation.write_campaign(campaign_id, local_steps=STEPS, quorum=2)
    digest = federation.approve(file)
    before = entries(federation, "site-e")
    command = federation.start("run", str(file), "--home", str(federation.home))
    try:
        wait_until(lambda: entries(federation, "site-e") > before, what="site-e charges the round")
        yield digest
    finally:
        command.wait(timeout=600)


def require_finished_once(
    federation: Federation, campaign_id: str, digest: str, *, n_rounds: int = 2
) -> None:
    """Run the campaign to its end and check that nothing in it happened twice."""
    status = federation.run(campaign_id)

    assert status["end"] == "finished"
    assert [r["outcome"]["status"] for r in status["rounds"]] == ["released"] * n_rounds
    store = federation.store()
    for item in status["rounds"]:
        assert item["outcome"]["contributors"] == list(SITES)
        for site in SITES:
            payload = store.get(keys.payload(campaign_id, item["round"], site))
            files = federation.site_home(site).glob(
                f"outbox/exchanges/*/{digest}/{item['round']:04d}/files/{sha256_hex(payload)}"
            )
            assert len(list(files)) == 1, "what was uploaded is what the outbox holds"
    for site in SITES:
        assert reserves(federation, site, digest) == list(range(1, n_rounds + 1))
    require_one_version_per_round(federation, campaign_id)
    require_no_session_left(federation, campaign_id)


def require_nothing_twice(federation: Federation, campaign_id: str, digest: str) -> None:
    """Run a campaign again that a fault cost answers, and check that nothing happens twice."""
    require_no_session_left(federation, campaign_id)
    before = federation.status(campaign_id)

    again = federation.run(campaign_id)

    assert again["end"] == before["end"] == "finished"
    outcomes = [item["outcome"] for item in again["rounds"]]
    assert outcomes == [item["outcome"] for item in before["rounds"]]
    assert {outcome["status"] for outcome in outcomes} == {"released"}
    for site in federation.sites:
        charged = reserves(federation, site, digest)
        counted = {i["round"] for i in again["rounds"] if site in i["outcome"]["contributors"]}
        assert charged == sorted(set(charged))
        assert counted <= set(charged)
    require_one_version_per_round(federation, campaign_id)
    require_no_session_left(federation, campaign_id)


def require_no_session_left(federation: Federation, campaign_id: str) -> None:
    """Require the end of every session of a campaign within two heartbeats."""
    wait_until(
        lambda: not open_sessions(federation, campaign_id),
        what="no session is left",
        timeout_s=ZOMBIE_S,
    )


def open_sessions(federation: Federation, campaign_id: str) -> list[str]:
    """Ids of the campaign's session runs that are not over."""
    return [
        run["id"]
        for run in federation.flow_runs("site-session", campaign_id)
        if run["state_type"] in OPEN
    ]


def require_one_version_per_round(federation: Federation, campaign_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(federation.stack.mlflow_url)
    versions = client.search_model_versions(f"name='{campaign_id}'")
    rounds = [str(item["round"]) for item in federation.status(campaign_id)["rounds"]]
    assert sorted(v.tags["round"] for v in versions) == rounds


def test_coordinator_killed_mid_round_is_finished_by_running_again(federation):
    with running(federation, "kill-coordinator") as digest:
        worker = federation.stack.processes()["coordinator"]
        (engine,) = children_of(worker.pid, "prefect.engine")

        os.kill(engine.pid, signal.SIGKILL)

    require_finished_once(federation, "kill-coordinator", digest)


def test_training_child_killed_mid_round_trains_again_under_the_same_charge(federation):
    with running(federation, "kill-child") as digest:
        worker = federation.stack.processes()["site site-e"]
        (child,) = children_of(worker.pid, "flows.warm_child")

        os.kill(child.pid, signal.SIGKILL)

    require_finished_once(federation, "kill-child", digest)


def test_site_worker_killed_mid_round_is_started_again_and_the_round_completes(federation):
    with running(federation, "kill-worker") as digest:
        worker = federation.stack.processes()["site site-e"]
        children = children_of(worker.pid, "flows.warm_child")

        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: not any(c.is_running() for c in children), what="the child ends")
        start_workers(federation.stack)

    require_finished_once(federation, "kill-worker", digest)


def test_prefect_server_killed_mid_round_costs_nothing(federation):
    with running(federation, "kill-prefect") as digest:
        server = federation.stack.processes()["prefect"]

        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(server), what="the server is gone")
        start(federation.home)

    require_finished_once(federation, "kill-prefect", digest)


def test_campaign_submitted_twice_from_the_form_is_released_once(federation):
    file = federation.write_campaign("twice-from-form", quorum=2)
    digest = federation.approve(file)

    both = submitted_twice(federation, file)

    assert [run["state_type"] for run in both] == ["COMPLETED", "COMPLETED"]
    assert max(run["start_time"] for run in both) < min(run["end_time"] for run in both)
    require_finished_once(federation, "twice-from-form", digest)


def submitted_twice(federation: Federation, file: Path) -> list[dict[str, Any]]:
    """Submit one campaign twice from Prefect's form; return both runs when they are over."""
    found = federation.prefect("/deployments/filter", {})
    (deployment,) = [d for d in found if d["name"] == "run-campaign"]
    form = {"parameters": {"campaign": file.read_text()}, "state": {"type": "SCHEDULED"}}
    address = f"/deployments/{deployment['id']}/create_flow_run"
    submitted = [federation.prefect(address, form)["id"] for _ in range(2)]
    wait_until(
        lambda: all(run_of(federation, each)["state_type"] not in OPEN for each in submitted),
        what="both runs end",
        timeout_s=300,
    )
    return [run_of(federation, each) for each in submitted]


def run_of(federation: Federation, run_id: str) -> dict[str, Any]:
    (run,) = federation.prefect("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    return dict(run)


def test_mlflow_away_for_a_whole_campaign_is_logged_later(federation):
    file = federation.write_campaign("without-mlflow", max_rounds=2)
    digest = federation.approve(file)
    server = federation.stack.processes()["mlflow"]
    # MLflow serves from children; they share its process group.
    os.killpg(server.pid, signal.SIGKILL)

    away = federation.run(str(file))
    start(federation.home)

    assert [r["outcome"]["status"] for r in away["rounds"]] == ["released", "released"]
    assert not federation.store().list(keys.logged("without-mlflow", 1))
    require_finished_once(federation, "without-mlflow", digest)
