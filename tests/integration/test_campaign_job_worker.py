"""Prefect's Kubernetes worker at a real Prefect server: which Job it asks a cluster for.

No cluster runs here. What stands in for its API takes the Job down and says that it is made;
server, registration and worker are the real ones, with the variables of the manifest.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect

pytestmark = pytest.mark.slow
MANIFESTS = Path(__file__).parents[2] / "deployments" / "kubernetes" / "campaign-jobs.yaml"
SECRET = "coordinator:a-password-of-prefect"


class Cluster(ThreadingHTTPServer):
    """Takes down what is asked of a cluster."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[tuple[str, dict]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        answer = body | {"metadata": body["metadata"] | {"name": "campaign-x1", "uid": "u1"}}
        text = json.dumps(answer).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_words: object) -> None:
        """Stay silent."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def kubeconfig(folder: Path, cluster: Cluster) -> Path:
    address = f"http://127.0.0.1:{cluster.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "worker", "user": {"token": "of-the-service-account"}}],
        "contexts": [{"name": "own", "context": {"cluster": "here", "user": "worker"}}],
        "current-context": "own",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def manifests() -> tuple[str, dict[str, str]]:
    """Return the Job, and the variables of the worker that concern a cluster."""
    documents = list(yaml.safe_load_all(MANIFESTS.read_text(encoding="utf-8")))
    (job,) = (each["data"]["job.yaml"] for each in documents if each["kind"] == "ConfigMap")
    (pod,) = (each["spec"]["template"] for each in documents if each["kind"] == "Deployment")
    told = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    return job, {name: value for name, value in told.items() if "_KUBERNETES_" in name}


def test_worker_asks_the_cluster_for_the_manifests_job_and_writes_no_secret_into_it(
    cluster, tmp_path
):
    text, told = manifests()
    (tmp_path / "job.yaml").write_text(text)
    with ended_with_this_process():
        server = start_prefect(tmp_path / "prefect")
        environ = os.environ | {
            "PREFECT_API_URL": f"{server.url}/api",
            "FEDLOOM_STORE": tmp_path.as_uri(),
            "PREFECT_HOME": str(tmp_path / "worker"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "KUBECONFIG": str(kubeconfig(tmp_path, cluster)),
            **told,
            # It watches pods, of which there are none here.
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
            "PREFECT_API_AUTH_STRING": SECRET,
        }
        register = [f"{sys.prefix}/bin/fedloom", "register", "--campaign-job"]
        subprocess.run([*register, str(tmp_path / "job.yaml")], env=environ, check=True)
        with SyncPrefectClient(f"{server.url}/api") as client:
            campaign = client.read_deployment_by_name("run-campaign/run-campaign")
            run = client.create_flow_run_from_deployment(
                campaign.id, parameters={"campaign_id": "my-first"}
            )
        start = [f"{sys.prefix}/bin/prefect", "worker", "start", "--pool=coordinator"]
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [*start, "--type=kubernetes"], env=environ, stdout=log, stderr=log
            )
        try:
            ends = time.monotonic() + 90
            while not cluster.asked and time.monotonic() < ends:
                time.sleep(0.2)
        finally:
            worker.kill()
            worker.wait()
            stop(server)

    ((path, job),) = cluster.asked
    wanted = yaml.safe_load(text)
    pod, own = job["spec"]["template"]["spec"], wanted["spec"]["template"]["spec"]
    env = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert path == "/apis/batch/v1/namespaces/fedloom/jobs"
    assert pod["containers"][0]["args"] == ["prefect", "flow-run", "execute"]
    assert env["PREFECT__FLOW_RUN_ID"]["value"] == str(run.id)
    for name in ("securityContext", "volumes", "affinity", "automountServiceAccountToken"):
        assert pod[name] == own[name]
    assert job["spec"]["template"]["metadata"]["labels"]["app"] == "campaign"
    assert env["PREFECT_API_AUTH_STRING"] == {
        "name": "PREFECT_API_AUTH_STRING",
        "valueFrom": {"secretKeyRef": {"name": "fedloom", "key": "prefect_auth"}},
    }
    assert SECRET not in json.dumps(job)
