"""Every compose command of docs/deploy.md: its file, service, words, and where it reads and writes.

No engine runs here. What can be known of a command without one is checked: that compose has the
service, that the service's image has the program and the keys that it needs, and that a path in the
container is a volume, since the root file systems are read-only.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pytest
import yaml
from sources import ROOT

DOCKER = ROOT / "docker"
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
# Options of `docker compose` 2 as they are used here, and whether each takes a value.
OPTIONS = {
    "build": {},
    "up": {"--detach": False, "--wait": False},
    "exec": {"-T": False},
    "run": {"--rm": False, "--no-deps": False, "-v": True},
}
TAKES_PROGRAM = {"exec", "run"}
# In the images: fedloom's own from its wheel and docker/, PostgreSQL's from upstream.
PROGRAMS = {
    "postgres": {"pg_dump", "pg_restore"},
    "fedloom-coordinator": {"fedloom", "prefect", "mlflow", "with-secrets", "cp", "sh"},
    "fedloom-site": {"fedloom", "with-secrets", "cp", "sh"},
}
# What asks no server of the coordinator's, so `exec` needs no keys for it.
NEEDS_NO_KEYS = {("fedloom", "gateway", "show"), ("fedloom", "site", "approve")}


@dataclass(frozen=True)
class Compose:
    """One `docker compose` command."""

    line: str
    file: str
    verb: str
    services: tuple[str, ...]
    program: tuple[str, ...] = ()
    mounts: tuple[str, ...] = field(default=())


def compose_commands(blocks):
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("docker compose "):
                yield parsed(line)


def parsed(line) -> Compose:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|")
    lexer.whitespace_split = True
    words = list(lexer)
    # Redirections are this host's.
    ends = [words.index(sign) for sign in "<>|" if sign in words]
    words = words[2 : min(ends, default=len(words))]
    files = []
    while words[0] == "-f":
        files.append(words[1])
        words = words[2:]
    verb, *rest = words
    mounts = []
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if OPTIONS[verb][option]:
            mounts.append(rest.pop(0))
    if verb in TAKES_PROGRAM:
        return Compose(line, files[0], verb, tuple(rest[:1]), tuple(rest[1:]), tuple(mounts))
    return Compose(line, files[0], verb, tuple(rest))


COMMANDS = list(compose_commands(BLOCKS))
EACH = pytest.mark.parametrize("command", COMMANDS, ids=[c.line[15:75] for c in COMMANDS])


def service_of(command):
    services = yaml.safe_load((ROOT / command.file).read_text(encoding="utf-8"))["services"]
    return services[command.services[0]]


def image_of(service):
    return re.search(r"(fedloom-\w+|postgres):", service["image"]).group(1)


def places(command) -> set[PurePosixPath]:
    """Return the folders of the container that are volumes or in memory."""
    service = service_of(command)
    stated = [re.sub(r"\$\{[^}]*\}", "host", each) for each in service.get("volumes", [])]
    mounted = [each.split(":")[1] for each in [*stated, *command.mounts]]
    return {PurePosixPath(each.split(":")[0]) for each in [*mounted, *service.get("tmpfs", [])]}


def paths_in(words):
    """Yield the paths of the container in a command, those inside `sh -c` included."""
    for word in words:
        yield from (PurePosixPath(each) for each in re.findall(r"(?:^|[\s=>])(/[\w./-]+)", word))


def is_inside(path, folders):
    return any(path == folder or folder in path.parents for folder in folders)


def test_the_documents_commands_are_found():
    verbs = {command.verb for command in COMMANDS}

    assert verbs == set(OPTIONS)
    assert len(COMMANDS) >= 25


@EACH
def test_command_names_a_file_and_services_that_there_are(command):
    services = yaml.safe_load((ROOT / command.file).read_text(encoding="utf-8"))["services"]

    assert set(command.services) <= set(services)
    assert bool(command.services) or command.verb not in TAKES_PROGRAM


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.program], ids=lambda c: " ".join(c.program)[:60]
)
def test_command_in_a_container_has_its_program_keys_and_places(command):
    service = service_of(command)

    assert command.program[0] in PROGRAMS[image_of(service)]
    # `run` passes the image's entrypoint, `exec` does not.
    if command.verb == "exec" and command.program[0] == "fedloom":
        assert command.program[:3] in NEEDS_NO_KEYS
    outside = [p for p in paths_in(command.program) if not is_inside(p, places(command))]
    assert outside == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("exec coordinator fedloom status", "keys"),
        ("exec coordinator with-secrets fedloom enrol /srv/enrol.json", "place"),
        ("run --rm gateway cp -a /var/lib/fedloom/. /mnt/backup/gateway", "place"),
        ("exec -T gateway pg_dump prefect", "program"),
        ("exec -T sql pg_dump prefect", "service"),
    ],
)
def test_command_that_would_fail_is_found(line, wrong):
    command = parsed(f"docker compose -f docker/compose.yaml {line}")
    check = test_command_in_a_container_has_its_program_keys_and_places

    if wrong == "service":
        check = test_command_names_a_file_and_services_that_there_are

    with pytest.raises(AssertionError):
        check(command)


def test_image_copies_only_what_its_context_has():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    let_in = {word.removeprefix("!") for word in ignored if word.startswith("!")}
    copied = {
        word
        for path in DOCKER.glob("*.Dockerfile")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }

    assert "docker/with-secrets" in copied
    assert [word for word in copied if not (ROOT / word).exists()] == []
    assert {word.partition("/")[0] for word in copied} <= let_in


def test_files_that_the_compose_files_mount_from_the_checkout_are_there():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounted = [
        volume.partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    # The three folders that the document has people make are in variables with a default.
    made = set(re.findall(r"docker/(holdouts|models|suites)\b", TEXT))

    assert mounted
    assert [path for path in mounted if not (DOCKER / path).exists()] == []
    assert made == {"holdouts", "models", "suites"}
