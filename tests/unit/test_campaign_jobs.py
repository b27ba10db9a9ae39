"""A campaign's Job: read from a manifest, rendered by Prefect's own worker, refused where unfit."""

import asyncio
from copy import deepcopy
from pathlib import Path
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from fl_core.errors import CampaignError
from flows.campaign_jobs import CONTAINER, job_template

MANIFESTS = Path(__file__).parents[2] / "deployments" / "kubernetes" / "campaign-jobs.yaml"


@pytest.fixture(scope="module")
def stated() -> dict:
    """The Job as the manifests of this repository state it."""
    documents = yaml.safe_load_all(MANIFESTS.read_text(encoding="utf-8"))
    (text,) = (d["data"]["job.yaml"] for d in documents if d["kind"] == "ConfigMap")
    return yaml.safe_load(text)


def written(folder: Path, job: object) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


def rendered(template: dict, **job_variables: object) -> dict:
    """What Prefect's own worker hands to the cluster for a run."""
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="my-first")
    settings = {PREFECT_API_URL: "http://prefect:4200/api", PREFECT_API_AUTH_STRING: "a:secret"}
    with temporary_settings(settings):
        found = asyncio.run(
            KubernetesWorkerJobConfiguration.from_template_and_values(
                base_job_template=deepcopy(template), values=job_variables
            )
        )
        found.prepare_for_flow_run(run)
    return found.job_manifest


def without_misplaced_fields(job: dict) -> dict:
    """Leave out what prefect-kubernetes wants in the pod's part and Kubernetes drops."""
    found = deepcopy(job)
    for name in ("parallelism", "completions"):
        del found["spec"]["template"]["spec"][name]
    return found


def test_prefects_worker_makes_a_valid_job_of_the_manifest_that_runs_the_flow(stated, tmp_path):
    job = rendered(job_template(written(tmp_path, stated)))

    kubernetes_validate.validate(without_misplaced_fields(job), "1.37", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    # The image's entrypoint gets the words, and with them the secrets from their files.
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert "command" not in container
    assert told["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert "PREFECT__FLOW_RUN_ID" in told
    # Evicted, a run goes back to Prefect.
    assert told["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


def test_job_has_the_pod_of_the_manifest_and_nothing_less(stated, tmp_path):
    job = rendered(job_template(written(tmp_path, stated)))

    pod, wanted = job["spec"]["template"]["spec"], stated["spec"]["template"]["spec"]
    same = ("securityContext", "volumes", "affinity", "automountServiceAccountToken")
    assert {name: pod[name] for name in same} == {name: wanted[name] for name in same}
    (container,), (own,) = pod["containers"], wanted["containers"]
    same = ("image", "resources", "securityContext", "volumeMounts", "envFrom")
    assert {name: container[name] for name in same} == {name: own[name] for name in same}
    assert [each for each in own["env"] if each not in container["env"]] == []


def test_nobody_who_starts_a_run_says_what_runs(stated, tmp_path):
    template = job_template(written(tmp_path, stated))
    asked = {
        "image": "evil.example.org/x",
        "command": "sh -c 'id'",
        "env": {"FEDLOOM_STORE": "s3://theirs"},
        "service_account_name": "cluster-admin",
        "namespace": "kube-system",
    }

    job = rendered(template, **asked)

    text = str(job)
    assert not [word for word in ("evil", "sh -c", "theirs", "admin", "kube-") if word in text]
    # The server refuses such a run in the first place.
    assert template["variables"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def changed(job: dict, path: str, value: object) -> dict:
    found = deepcopy(job)
    *parents, last = [int(word) if word.isdigit() else word for word in path.split("/")]
    part = found
    for word in parents:
        part = part[word]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return found


IN_CONTAINER = "spec/template/spec/containers/0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("kind", "CronJob", "found batch/v1 CronJob, expected batch/v1 Job"),
        ("metadata/name", "campaign", "metadata.name 'campaign'"),
        ("metadata/namespace", None, "no metadata.namespace"),
        ("spec/backoffLimit", 6, "spec.backoffLimit 6"),
        ("spec/template/spec/restartPolicy", "OnFailure", "restartPolicy 'OnFailure'"),
        ("spec/template/spec/containers", [], f"expected {CONTAINER}"),
        (f"{IN_CONTAINER}/name", "campaign", "name of the container 'campaign'"),
        (f"{IN_CONTAINER}/image", None, "no image"),
        (f"{IN_CONTAINER}/command", ["sh"], "the image's entrypoint reads secrets"),
        (f"{IN_CONTAINER}/args", ["true"], "prefect says which run it is"),
        ("spec", "nothing", "spec.backoffLimit None"),
    ],
)
def test_manifest_that_could_start_no_run_is_refused(stated, tmp_path, path, value, said):
    with pytest.raises(CampaignError) as refused:
        job_template(written(tmp_path, changed(stated, path, value)))

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not readable as yaml"),
        ("", "holds 0 documents"),
        ("a: 1\n---\nb: 2", "holds 2 documents"),
        ("!!python/object/apply:os.system [id]", "not readable as yaml"),
        ("#" * 70_000, "more than 65536 bytes"),
    ],
    ids=["broken", "empty", "two", "code", "long"],
)
def test_file_that_is_not_one_manifest_is_refused(tmp_path, text, said):
    path = tmp_path / "job.yaml"
    path.write_text(text)

    with pytest.raises(CampaignError, match=said):
        job_template(path)


def test_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CampaignError, match="not readable as yaml"):
        job_template(tmp_path / "absent.yaml")
