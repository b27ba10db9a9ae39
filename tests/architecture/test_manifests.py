"""Kubernetes manifests: of their schema, without rights, and in step with the compose file."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from prefect_kubernetes.settings import KubernetesSettings
from sources import ROOT
from test_docker import COORDINATOR, _fields, known_variables

FOLDER = ROOT / "deployments" / "kubernetes"
MANIFESTS = [
    (f"{path.stem}/{each['kind']}/{each['metadata']['name']}", each)
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
# A campaign's Job is in a ConfigMap, from where `fedloom register` takes it.
(JOB,) = (
    (f"{name}/job", yaml.safe_load(each["data"]["job.yaml"]))
    for name, each in MANIFESTS
    if each["metadata"]["name"] == "campaign-job"
)
PODS = [
    (name, each["spec"]["template"]["spec"])
    for name, each in [*MANIFESTS, JOB]
    if each["kind"] in {"Deployment", "Job"}
]
# The one that makes Jobs; nothing else speaks to the cluster.
SPEAKS_TO_CLUSTER = {"campaign-jobs/Deployment/coordinator"}
CONFIG = {
    each["metadata"]["name"]: each["data"] for _, each in MANIFESTS if each["kind"] == "ConfigMap"
}
# Versions that clusters run: the oldest and the newest that the schemas are at hand for and differ.
VERSIONS = ("1.30", "1.37")
# What an operator writes beside the files of `fedloom secrets`.
BY_HAND = {"redis_messaging", "redis_docket"}
KUBERNETES_WORKER = {
    name for name, _ in _fields(KubernetesSettings, "PREFECT_INTEGRATIONS_KUBERNETES_")
}


def each_of(pairs):
    return {"argvalues": pairs, "ids": [name for name, _ in pairs]}


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def variables(container) -> dict[str, str]:
    """Return a container's variables, those of its ConfigMaps included, as they are written."""
    found = {each["name"]: each["value"] for each in container.get("env", [])}
    for source in container.get("envFrom", []):
        found |= CONFIG[source["configMapRef"]["name"]]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "manifest"), **each_of([*MANIFESTS, JOB]))
def test_manifest_follows_the_schema_of_kubernetes(name, manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_field_that_kubernetes_does_not_know_is_found():
    (manifest,) = (each for name, each in MANIFESTS if name == "site/Deployment/site")
    wrong = {**manifest, "spec": {**manifest["spec"], "replica": 1}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("name", "pod"), **each_of(PODS))
def test_pod_meets_the_restricted_standard_of_its_namespace(name, pod):
    assert pod["automountServiceAccountToken"] is (name in SPEAKS_TO_CLUSTER)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert ":latest" not in container["image"]
        assert ":" in container["image"]


@pytest.mark.parametrize(("name", "pod"), **each_of(PODS))
def test_container_sets_only_variables_that_something_reads(name, pod):
    for container in containers(pod):
        stated = variables(container)
        seen = {n.removesuffix("_FILE") if v.startswith("/run/") else n for n, v in stated.items()}
        assert seen - known_variables() - KUBERNETES_WORKER == set()


@pytest.mark.parametrize(("name", "pod"), **each_of(PODS))
def test_container_is_given_the_secrets_that_it_reads_and_no_others(name, pod):
    given = {
        item["path"]
        for volume in pod["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    }
    read = {
        Path(value).name
        for container in containers(pod)
        for value in variables(container).values()
        if value.startswith("/run/secrets/")
    }

    assert read == given


@pytest.mark.parametrize(("name", "pod"), **each_of(PODS))
def test_volume_that_is_mounted_is_there(name, pod):
    claims = {
        each["metadata"]["name"] for _, each in MANIFESTS if each["kind"].startswith("Persistent")
    }
    stated = {volume["name"] for volume in pod["volumes"]}
    configured = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }

    mounted = {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]}

    assert mounted == stated
    assert claimed <= claims
    assert configured <= set(CONFIG)


@pytest.mark.parametrize("service", ["mlflow", "gateway", "coordinator", "evaluation"])
def test_cluster_and_compose_tell_a_service_the_same(service):
    (pod,) = (pod for name, pod in PODS if name == f"coordinator/Deployment/{service}")
    stated = set(variables(pod["containers"][0]))
    composed = set(COORDINATOR[service]["environment"])
    # A cluster's evaluation has no folder of suites of its own in the example.
    assert stated ^ composed <= {"FEDLOOM_SUITES", "PREFECT_UI_API_URL"}
    command = pod["containers"][0]["args"]
    ours = [
        re.sub(r"\$\{.*\}", "https://fl.example.org:8443", w) for w in composed_command(service)
    ]
    assert command == ours


def composed_command(service):
    return COORDINATOR[service]["command"]


def test_commands_of_the_prefect_processes_are_those_of_the_installed_version():
    commands = {
        name.rpartition("/")[2]: [c["args"][:4] for c in containers(pod)]
        for name, pod in PODS
        if "/prefect" in name
    }

    assert commands["prefect"] == [["prefect", "server", "start", "--host"]]
    assert commands["prefect-services"] == [
        ["prefect", "server", "database", "upgrade"],
        ["prefect", "server", "services", "start"],
    ]


def test_site_reaches_the_gateway_and_names_only():
    policies = [each for name, each in MANIFESTS if name.startswith("site/NetworkPolicy")]

    (policy,) = policies
    assert policy["spec"]["podSelector"] == {}
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]] == [
        [8443],
        [53, 53],
    ]
    assert (
        "ports" not in next(pod for name, pod in PODS if name.startswith("site/"))["containers"][0]
    )


def test_gateway_has_no_way_to_mlflow():
    policies = [each["spec"] for name, each in MANIFESTS if name.startswith("coordinator/Network")]
    (denied,) = (p for p in policies if p["podSelector"] == {} and p["policyTypes"][0] == "Ingress")
    to_mlflow = [
        policy["podSelector"]
        for policy in policies
        for rule in policy.get("egress", [])
        if rule["to"] == [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]
    ]

    assert "egress" not in denied
    assert to_mlflow == [{"matchLabels": {"app": "coordinator"}}]


def test_secrets_come_from_the_command_or_by_hand():
    from test_docker import SECRETS

    items = {
        item["key"]
        for _, pod in PODS
        for volume in pod["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    }

    assert items - BY_HAND <= SECRETS


def test_worker_of_campaigns_may_do_to_the_cluster_what_it_does_and_nothing_more():
    (role,) = (each for _, each in MANIFESTS if each["kind"] == "Role")
    (binding,) = (each for _, each in MANIFESTS if each["kind"] == "RoleBinding")
    allowed = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

    # Source: the calls of prefect-kubernetes 0.8.0 in worker.py and observer.py.
    assert allowed == {
        ("batch", "jobs"): {"create", "delete", "get", "list", "watch"},
        ("", "pods"): {"get", "list", "watch"},
        ("", "pods/log"): {"get"},
    }
    assert [each["name"] for each in binding["subjects"]] == ["campaign-worker"]
    assert {
        name for name, pod in PODS if pod.get("serviceAccountName") == "campaign-worker"
    } == SPEAKS_TO_CLUSTER
    assert not [name for name, each in MANIFESTS if each["kind"].startswith("Cluster")]


def test_campaign_in_a_job_is_told_what_a_process_of_the_worker_is_told():
    pods = {name: pod["containers"][0] for name, pod in PODS}
    beside = variables(pods["coordinator/Deployment/coordinator"])
    own = variables(pods[JOB[0]])

    # How a worker looks for runs is the worker's.
    assert {n: v for n, v in beside.items() if not n.startswith("PREFECT_WORKER_")} == own


def test_coordinator_that_makes_jobs_replaces_the_one_that_does_not():
    found = {name.partition("/")[0]: each for name, each in MANIFESTS if "nt/coordinator" in name}

    old, new = found["coordinator"], found["campaign-jobs"]
    # What Kubernetes lets nobody change later, and what exec and policies name.
    assert old["spec"]["selector"] == new["spec"]["selector"]
    assert old["spec"]["template"]["metadata"] == new["spec"]["template"]["metadata"]
    assert old["metadata"] == new["metadata"]


def test_site_on_a_cluster_runs_its_own_worker_with_the_folders_of_the_compose_file():
    ((_, pod),) = (each for each in PODS if each[0].startswith("site/"))
    composed = yaml.safe_load((ROOT / "docker" / "compose.site.yaml").read_text())["services"]

    (container,) = pod["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["fedloom", "site", "start", "--home", "/var/lib/fedloom/site"]
    assert mounted - {"/tmp"} == {  # noqa: S108  a folder of the container
        volume.split(":")[1] for volume in map(target, composed["site"]["volumes"])
    }
    assert "serviceAccountName" not in pod


def target(volume: str) -> str:
    """Leave a volume's variable out, whose default or message may hold a colon."""
    return re.sub(r"\$\{[^}]*\}", "", volume)
