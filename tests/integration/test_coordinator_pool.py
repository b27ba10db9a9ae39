"""The pool of campaigns at a real server: how many at one time, and as Jobs of a cluster."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from registered_api import command, registered_api

from flows import registration
from flows.schedules import Schedule, read_schedules, remove_schedule, write_schedule

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with registered_api(tmp_path_factory.mktemp("prefect"), sites=["north"]) as made:
        yield made


@pytest.fixture
def client(server: SyncPrefectClient) -> Iterator[SyncPrefectClient]:
    """The server, without a pool of campaigns before and after."""
    registration.register(sites=["north"])
    remove_pool(server)
    yield server
    registration.register(sites=["north"])
    remove_pool(server)


def remove_pool(client: SyncPrefectClient) -> None:
    client.delete_work_pool("coordinator")


def test_campaigns_at_one_time_are_four_at_first_and_then_as_they_were_stated(client, tmp_path):
    first = command("register", client=client, store=tmp_path)
    at_first = client.read_work_pool("coordinator").concurrency_limit
    stated = command("register", "--campaigns", "2", client=client, store=tmp_path)
    again = command("register", client=client, store=tmp_path)

    assert [each.returncode for each in (first, stated, again)] == [0, 0, 0], again.stderr
    assert at_first == 4
    assert client.read_work_pool("coordinator").concurrency_limit == 2


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The Job of the manifests, as the pod of `fedloom register` finds it."""
    manifests = (ROOT / "deployments" / "kubernetes" / "campaign-jobs.yaml").read_text()
    (text,) = (
        each["data"]["job.yaml"]
        for each in yaml.safe_load_all(manifests)
        if each["kind"] == "ConfigMap"
    )
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_pool_of_a_cluster_takes_its_job_at_every_registration(client, tmp_path, job):
    words = ("register", "--campaign-job", str(job))

    first = command(*words, client=client, store=tmp_path)
    job.write_text(job.read_text().replace("fedloom-coordinator:0.1.0", "fedloom-coordinator:9"))
    second = command(*words, "--campaigns", "7", client=client, store=tmp_path)
    bare = command("register", client=client, store=tmp_path)

    assert [each.returncode for each in (first, second, bare)] == [0, 0, 0], first.stderr
    pool = client.read_work_pool("coordinator")
    (container,) = pool.base_job_template["job_configuration"]["job_manifest"]["spec"]["template"][
        "spec"
    ]["containers"]
    assert (pool.type, pool.concurrency_limit) == ("kubernetes", 7)
    assert container["image"].endswith("fedloom-coordinator:9")
    assert client.read_deployment_by_name("run-campaign/run-campaign").work_pool_name == pool.name


def test_run_that_names_an_image_is_refused_by_the_server(client, tmp_path, job):
    command("register", "--campaign-job", str(job), client=client, store=tmp_path)
    found = client.read_deployment_by_name("run-campaign/run-campaign")

    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.create_flow_run_from_deployment(
            found.id, parameters={"campaign_id": "x"}, job_variables={"image": "evil.example.org/x"}
        )

    assert refused.value.response.status_code in {409, 422}


def test_pool_of_processes_is_not_made_one_of_jobs_under_a_campaign(client, tmp_path, job):
    registration.register(sites=["north"])

    found = command("register", "--campaign-job", str(job), client=client, store=tmp_path)

    assert found.returncode == 2
    assert "is of type process, expected kubernetes" in found.stderr.replace("\n", " ")
    assert client.read_work_pool("coordinator").type == "process"


def test_schedules_survive_the_change_of_where_campaigns_run(client, tmp_path, job):
    registration.register(sites=["north"])
    write_schedule(Schedule("nightly", cron="0 3 * * *"))

    remove_pool(client)
    command("register", "--campaign-job", str(job), client=client, store=tmp_path)

    assert read_schedules() == [Schedule("nightly", cron="0 3 * * *")]
    remove_schedule("nightly")
