"""People as the unit, over real servers: the example `examples/people`, with two more campaigns.

A federation of its own, because the ledger of a site counts one unit for ever: the sites of the
other tests count rows. Both sites upload at a fixed time, so this also holds the clock to rule 19.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from fl_core.updates.records import Series
from flows.local_workers import environment
from tests.e2e.examples import EXAMPLES, example_federation
from tests.e2e.federation import Federation, wait_until
from tests.e2e.traces import database_texts, objects_of, outside_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = EXAMPLES / "people"
SITES = ("north", "south")
# Part of every invented id: whatever leaves a site must not hold it.
CANARY = b"-mechanic-"
SERIES = Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=100)


@pytest.fixture(scope="module")
def people() -> Iterator[Federation]:
    from fl_core.privacy.policy_template import counting_units, policy_text

    rows = policy_text(epsilon=40.0, delta=1e-5, series=SERIES)
    policy = counting_units(rows, "mechanic", 4)
    with example_federation("people", SITES, policy=policy, declared_examples=64) as federation:
        yield federation


def campaign_file(federation, campaign_id, *changes):
    text = (EXAMPLE / "campaign.toml").read_text()
    for old, new in (('id = "mechanics"', f'id = "{campaign_id}"'), *changes):
        assert old in text
        text = text.replace(old, new)
    file = federation.folder / f"{campaign_id}.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def status(people):
    file = campaign_file(people, "mechanics")
    people.approve(file)
    return people.run(str(file))


def test_rounds_are_released_for_people(status):
    assert status["end"] == "finished"
    assert [r["outcome"]["status"] for r in status["rounds"]] == ["released", "released"]
    for item in status["rounds"]:
        assert item["outcome"]["contributors"] == list(SITES)


def test_statements_ledger_and_page_say_the_unit(people, status):
    budgets = status["rounds"][-1]["budgets"]
    document = people.json("ledger", "--home", str(people.home), "--site", "north")["ledgers"][0]

    assert {site: budget["unit"] for site, budget in budgets.items()} == dict.fromkeys(
        SITES, "mechanic"
    )
    assert {entry["unit"] for entry in document["entries"]} == {"mechanic"}
    # 8 steps of noise 0.8 at rate 0.1, whatever rows a mechanic has; the ledger says no less.
    assert budgets["north"]["epsilon"] == pytest.approx(4.26, abs=0.01)
    assert budgets["north"]["epsilon"] == budgets["south"]["epsilon"]


def test_every_version_says_whom_it_protects(people, status):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    uri = environment(people.stack)["MLFLOW_TRACKING_URI"]
    versions = MlflowClient(uri).search_model_versions("name='mechanics'")

    page = download_artifacts(
        run_id=versions[0].run_id, artifact_path="statement.md", tracking_uri=uri
    )
    text = Path(page).read_text()
    assert "all rows of one mechanic, at most 4" in text


def test_no_site_uploads_before_the_public_time_and_both_at_it(people, status):
    for item in status["rounds"]:
        opened = datetime.fromisoformat(item["outcome"]["opened"])
        for key, written in written_at(people, f"campaigns/mechanics/rounds/{item['round']:04d}/"):
            if "/updates/" in key:
                # The store's times are whole seconds, rounded down.
                assert written >= opened + timedelta(seconds=19), key


def written_at(people, prefix):
    keys = people.stack.file.coordinator
    client = boto3.client(
        "s3",
        endpoint_url=people.stack.s3_endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    (bucket,) = (b["Name"] for b in client.list_buckets()["Buckets"] if b["Name"] == "fedloom")
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert any(item["Key"].endswith("manifest.json") for item in found)
    return [(item["Key"], item["LastModified"]) for item in found]


def test_a_round_at_a_site_ends_for_prefect_at_the_public_time_too(people, status):
    sessions = people.flow_runs("site-session", "mechanics")
    tasks = people.prefect(
        "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"] for run in sessions]}}}
    )
    opened = {
        f"round-{r['round']:04d}": datetime.fromisoformat(r["outcome"]["opened"])
        for r in status["rounds"]
    }

    wait_until(
        lambda: (
            {r["state_type"] for r in people.flow_runs("site-session", "mechanics")}
            == {"COMPLETED"}
        ),
        what="sessions that waited for their upload to see the run's end",
    )
    assert len(tasks) == 4
    for task in tasks:
        ended = datetime.fromisoformat(task["end_time"])
        assert ended >= opened[task["name"]] + timedelta(seconds=20)


def test_no_id_of_a_person_and_no_figure_of_a_site_leaves_it(people, status):
    read_outs = people.json("site", "readout", "--home", str(people.home))["readouts"]
    figures = [
        str(one[name]).encode()
        for site in read_outs
        for one in site["rounds"]
        for name in ("cosine", "norm_ratio", "clipped_share")
        if len(str(one[name])) > 8
    ]
    assert [len(site["rounds"]) for site in read_outs] == [2, 2]
    assert len(figures) >= 8

    found = [
        where
        for where, data in [
            *objects_of(people.stack),
            *database_texts(people.stack),
            *((name, data) for name, data in outside_files(people.home) if "site-" not in name),
        ]
        if CANARY in data or any(figure in data for figure in figures)
    ]

    assert found == []


def test_key_of_the_draw_is_at_the_site_alone_and_closed(people, status):
    keys = [people.site_home(site) / "unit.key" for site in SITES]

    assert [key.stat().st_mode & 0o777 for key in keys] == [0o600, 0o600]
    assert keys[0].read_bytes() != keys[1].read_bytes()
    secrets = [key.read_bytes() for key in keys]
    assert not any(s in data for s in secrets for _, data in objects_of(people.stack))


def test_campaign_for_another_unit_is_declined_by_every_site(people, status):
    file = campaign_file(
        people,
        "rows-instead",
        ('unit = "mechanic" ', 'unit = "row" '),
        ("max_rows_per_unit = 4 ", "max_rows_per_unit = 1 "),
        ("upload_after_s = 20 ", "# none "),
    )
    people.approve(file)

    ended = people.run(str(file))

    (only,) = ended["rounds"]
    assert only["outcome"]["status"] == "skipped"
    assert {a["reason"] for a in only["answers"].values()} == {"policy"}


def test_warnings_are_in_the_run_log_and_beside_the_round_table(people, status):
    file = campaign_file(
        people,
        "absurd",
        ("epsilon = 8.0", "epsilon = 99.0"),
        ("batch_size = { north = 8.0, south = 16.0 }", "batch_size = 1e-3"),
        ("upload_after_s = 20 ", "# none "),
        ("max_rounds = 2", "max_rounds = 1"),
    )
    people.approve(file)

    ended = people.run(str(file))

    fields = [warning["field"] for warning in ended["warnings"]]
    assert fields == ["privacy.record.epsilon", "privacy.record.noise_multiplier"]
    logs = people.prefect("/logs/filter", {"limit": 200, "sort": "TIMESTAMP_DESC"})
    assert any("signal to noise is at best" in line["message"] for line in logs)
    artifacts = people.prefect("/artifacts/latest/filter", {})
    (table,) = (a for a in artifacts if a["key"] == "absurd-rounds")
    assert "99 is above 50" in table["description"]
    assert json.loads(table["data"])


def test_commands_of_the_example_run_as_its_page_shows_them(tmp_path):
    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done

    fedloom = ("-m", "flows.cli.main")
    campaign = str(EXAMPLE / "campaign.toml")
    rows = ("--data", "north=people/north.csv", "--data", "south=people/south.csv")

    run(str(EXAMPLE / "make_rows.py"), "people")
    shown = run(*fedloom, "check", campaign)
    done = run(*fedloom, "simulate", campaign, *rows, "--holdouts", "people/holdouts", "--json")

    assert "every mechanic (up to 4 rows each)" in " ".join(shown.stderr.split())
    document = json.loads(done.stdout)
    assert [r["outcome"]["status"] for r in document["rounds"]] == ["released", "released"]
    assert document["warnings"] == []
