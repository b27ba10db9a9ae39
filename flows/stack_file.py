"""What a home folder remembers of its stack: ports, credentials, processes.

Ports and keys outlive a stop: a site's config names the addresses, so they may not move between
two runs. Credentials lie in one file that only its owner may read. A process record is written
when a process was started and removed when it was stopped; one that is left over tells the next
start what to end.
"""

import json
import os
import secrets
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fl_core.artifacts.documents import Document, from_bytes
from fl_core.campaign.specs import Name
from flows.processes import ServerProcess, free_ports, is_port_free
from flows.servers import S3Identity, SeaweedPorts

BUCKET = "fedloom"
"""The campaigns' store."""

MLFLOW_BUCKET = "mlflow"
"""MLflow's artifacts; no site may read it."""


class S3Keys(Document):
    """One pair of S3 keys."""

    access_key: str
    secret_key: str = Field(repr=False)

    @classmethod
    def draw(cls) -> "S3Keys":
        """New keys from the operating system's randomness, 80 and 240 bits."""
        return cls(access_key=secrets.token_hex(10).upper(), secret_key=secrets.token_urlsafe(30))


class StackFile(Document):
    """``stack.json`` of a home folder.

    Attributes:
        version: Format of this file.
        prefect_port: Port of Prefect's API and UI.
        mlflow_port: Port of MLflow's API and UI.
        s3_ports: Ports of SeaweedFS by name; only ``s3`` is known outside.
        coordinator: Keys with all rights.
        sites: Keys of every site.
        evaluation: Keys of the evaluation worker; None in a home of before, until its next start.
    """

    version: Literal[1] = 1
    prefect_port: int
    mlflow_port: int
    s3_ports: dict[str, int]
    coordinator: S3Keys
    sites: dict[Name, S3Keys] = Field(default_factory=dict)
    evaluation: S3Keys | None = None

    @property
    def seaweed_ports(self) -> SeaweedPorts:
        """The ports as the server takes them."""
        return SeaweedPorts(**self.s3_ports)

    def identities(self) -> list[S3Identity]:
        """The S3 identities of the evaluation worker and of the sites."""
        own = [] if self.evaluation is None else [evaluation_identity(self.evaluation)]
        return own + [site_identity(name, pair) for name, pair in sorted(self.sites.items())]


def evaluation_identity(pair: S3Keys) -> S3Identity:
    """The rights of the evaluation worker: read releases and texts to lock, write its results.

    What sites upload is closed to it: updates without noise are for the worker that releases.
    """
    campaigns, drafts = f"{BUCKET}/campaigns/*", f"{BUCKET}/drafts/*"
    results = f"{campaigns}/rounds/*/evaluation.json"
    readable = (
        f"{campaigns}/campaign.json",
        f"{campaigns}/adapters/*",
        *(f"{campaigns}/rounds/*/{name}.json" for name in ("plan", "outcome")),
        results,
        drafts,
    )
    writable = (f"Write:{path}" for path in (results, drafts))
    actions = (*(f"Read:{path}" for path in readable), f"List:{BUCKET}", *writable)
    return S3Identity("evaluation", pair.access_key, pair.secret_key, actions)


def site_identity(site: str, pair: S3Keys) -> S3Identity:
    """The rights of a site: read what the coordinator wrote, write its own updates.

    Another site's updates are closed to it. SeaweedFS lets ``*`` stand for anything, slashes
    included; what slips through is read by nobody, because readers of a listing ask ``keys`` for
    whole keys. Listing shows names of objects.
    """
    campaigns = f"{BUCKET}/campaigns/*"
    own = f"{campaigns}/rounds/*/updates/{site}/*"
    copies = f"{BUCKET}/witness/{site}/*"
    readable = (
        f"{campaigns}/campaign.json",
        f"{campaigns}/stops/*",
        f"{campaigns}/adapters/*",
        *(f"{campaigns}/rounds/*/{name}.json" for name in ("plan", "collected", "outcome")),
        f"{BUCKET}/rosters/*",
        f"{BUCKET}/ledger/clients/*",
        copies,
        own,
    )
    writable = (f"Write:{path}" for path in (own, copies))
    actions = (*(f"Read:{path}" for path in readable), f"List:{BUCKET}", *writable)
    return S3Identity(site, pair.access_key, pair.secret_key, actions)


def stack_path(home: Path) -> Path:
    """Where a home keeps its stack file."""
    return home / "stack.json"


def read_stack_file(home: Path) -> StackFile | None:
    """Read ``stack.json``, or None where the home has none.

    Raises:
        ObjectCorrupt: The file is not what this version writes.
    """
    path = stack_path(home)
    if not path.exists():
        return None
    return from_bytes(StackFile, path.read_bytes(), what=str(path))


def write_stack_file(home: Path, file: StackFile) -> StackFile:
    """Replace ``stack.json`` in one step, mode 0600."""
    write_private(stack_path(home), file.model_dump_json(indent=2).encode())
    return file


def write_private(path: Path, data: bytes) -> None:
    """Replace a file in one step; from its first byte only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + f".{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)


def prepared_stack_file(
    home: Path, *, sites: tuple[str, ...], prefect_port: int | None, mlflow_port: int | None
) -> StackFile:
    """The stack file that a start would use: new sites, stated ports; nothing is written yet.

    Ports that nobody outside the S3 server knows are drawn again where they are taken.
    """
    file = read_stack_file(home)
    if file is None:
        drawn = free_ports(2 + len(fields(SeaweedPorts)))
        names = [field.name for field in fields(SeaweedPorts)]
        file = StackFile(
            prefect_port=drawn[0],
            mlflow_port=drawn[1],
            s3_ports=dict(zip(names, drawn[2:], strict=True)),
            coordinator=S3Keys.draw(),
        )
    added = {name: S3Keys.draw() for name in sites if name not in file.sites}
    changes: dict[str, Any] = {
        "sites": file.sites | added,
        "evaluation": file.evaluation or S3Keys.draw(),
    }
    if prefect_port is not None:
        changes["prefect_port"] = prefect_port
    if mlflow_port is not None:
        changes["mlflow_port"] = mlflow_port
    changes["s3_ports"] = _with_free_inner_ports(file.s3_ports)
    return file.model_copy(update=changes)


def _with_free_inner_ports(ports: dict[str, int]) -> dict[str, int]:
    fresh = free_ports(len(ports))
    return {
        name: port if name == "s3" or is_port_free(port) else fresh[index]
        for index, (name, port) in enumerate(ports.items())
    }


def record_process(home: Path, server: ServerProcess) -> None:
    """Write down a process of the stack under ``run/``."""
    plain = asdict(server) | {"log_path": str(server.log_path)}
    write_private(_record_path(home, server.name), json.dumps(plain).encode())


def forget_process(home: Path, server: ServerProcess) -> None:
    """Remove the record of a process that was stopped."""
    _record_path(home, server.name).unlink(missing_ok=True)


def recorded_processes(home: Path) -> dict[str, ServerProcess]:
    """All processes that were started for this home and not stopped since, by name."""
    found = {}
    for path in sorted((home / "run").glob("*.json")):
        plain = json.loads(path.read_bytes())
        server = ServerProcess(**plain | {"log_path": Path(plain["log_path"])})
        found[server.name] = server
    return found


def _record_path(home: Path, name: str) -> Path:
    return home / "run" / f"{name.replace(' ', '-')}.json"
