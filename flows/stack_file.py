"""What a home folder remembers of its stack: ports, credentials, processes.

Ports and keys outlive a stop: a site's config names the gateway's address, so it may not move
between two runs. Credentials lie in one file that only its owner may read; no site has any, its
only way in is the gateway. A process record is written when a process was started and removed when
it was stopped; one that is left over tells the next start what to end.
"""

import json
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fl_core.artifacts.documents import Document, from_bytes
from fl_core.artifacts.replacing import replace_file
from flows.processes import LOOPBACK, ServerProcess, free_ports, is_port_free
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
        version: Format of this file; in format 1 every site had keys of its own.
        prefect_port: Port of Prefect's API and UI.
        mlflow_port: Port of MLflow's API and UI.
        gateway_port: Port of the sites' door.
        gateway_listen: Address that the gateway listens on.
        gateway_hosts: Names under which sites elsewhere reach it; the first is in the invite.
        s3_ports: Ports of SeaweedFS by name; only ``s3`` is known outside.
        coordinator: Keys with all rights.
        gateway: Keys of the gateway.
        evaluation: Keys of the evaluation worker.
    """

    version: Literal[2] = 2
    prefect_port: int
    mlflow_port: int
    gateway_port: int
    gateway_listen: str = LOOPBACK
    gateway_hosts: tuple[str, ...] = ()
    s3_ports: dict[str, int]
    coordinator: S3Keys
    gateway: S3Keys
    evaluation: S3Keys

    @property
    def seaweed_ports(self) -> SeaweedPorts:
        """The ports as the server takes them."""
        return SeaweedPorts(**self.s3_ports)

    @property
    def prefect_url(self) -> str:
        """Prefect's UI."""
        return f"http://{LOOPBACK}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and tracking URI."""
        return f"http://{LOOPBACK}:{self.mlflow_port}"

    @property
    def s3_endpoint(self) -> str:
        """The S3 endpoint."""
        return f"http://{LOOPBACK}:{self.s3_ports['s3']}"

    def identities(self) -> list[S3Identity]:
        """The S3 identities beside the coordinator's."""
        return [evaluation_identity(self.evaluation), gateway_identity(self.gateway)]


@dataclass(frozen=True, slots=True)
class Stated:
    """What a start states for now and for later; None keeps what was.

    Attributes:
        prefect_port: Port of Prefect.
        mlflow_port: Port of MLflow.
        gateway_port: Port of the gateway.
        gateway_listen: Address that the gateway listens on.
        gateway_hosts: Names under which sites elsewhere reach it.
    """

    prefect_port: int | None = None
    mlflow_port: int | None = None
    gateway_port: int | None = None
    gateway_listen: str | None = None
    gateway_hosts: tuple[str, ...] | None = None

    def changes(self) -> dict[str, Any]:
        """Return what is stated, by field of the stack file."""
        found = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in found if value is not None}


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


def gateway_identity(pair: S3Keys) -> S3Identity:
    """The rights of the gateway: what sites may do, all of them together.

    Which site may do what is decided in the gateway, by whole keys; this is what is left of it if
    the gateway itself is somebody else's: no plan, roster, release or ledger can be written.
    """
    campaigns = f"{BUCKET}/campaigns/*"
    written = (
        f"{campaigns}/rounds/*/updates/*",
        f"{BUCKET}/witness/*",
        f"{BUCKET}/hellos/*",
    )
    readable = (campaigns, f"{BUCKET}/rosters/*", f"{BUCKET}/ledger/clients/*", *written[1:])
    actions = (
        *(f"Read:{path}" for path in readable),
        f"List:{BUCKET}",
        *(f"Write:{path}" for path in written),
    )
    return S3Identity("gateway", pair.access_key, pair.secret_key, actions)


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
    replace_file(stack_path(home), file.model_dump_json(indent=2).encode(), mode=0o600)
    return file


def prepared_stack_file(home: Path, stated: Stated, *, keep_ports: bool = False) -> StackFile:
    """The stack file that a start would use, with what is stated; nothing is written yet.

    Args:
        home: The stack's home.
        stated: What is different from now on.
        keep_ports: The S3 server runs on its ports; else those that nobody outside it knows are
            drawn again where they are taken.
    """
    file = read_stack_file(home) or _new_stack_file()
    inner = file.s3_ports if keep_ports else _with_free_inner_ports(file.s3_ports)
    return file.model_copy(update={**stated.changes(), "s3_ports": inner})


def _new_stack_file() -> StackFile:
    names = [field.name for field in fields(SeaweedPorts)]
    prefect, mlflow, gateway, *drawn = free_ports(3 + len(names))
    return StackFile(
        prefect_port=prefect,
        mlflow_port=mlflow,
        gateway_port=gateway,
        s3_ports=dict(zip(names, drawn, strict=True)),
        coordinator=S3Keys.draw(),
        gateway=S3Keys.draw(),
        evaluation=S3Keys.draw(),
    )


def is_first_format(home: Path) -> bool:
    """Say whether a home is of the time when every site had keys of the store."""
    path = stack_path(home)
    try:
        plain = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        return False
    return isinstance(plain, dict) and plain.get("version") == 1


def _with_free_inner_ports(ports: dict[str, int]) -> dict[str, int]:
    fresh = free_ports(len(ports))
    return {
        name: port if name == "s3" or is_port_free(port) else fresh[index]
        for index, (name, port) in enumerate(ports.items())
    }


def record_process(home: Path, server: ServerProcess) -> None:
    """Write down a process of the stack under ``run/``."""
    plain = asdict(server) | {"log_path": str(server.log_path)}
    replace_file(_record_path(home, server.name), json.dumps(plain).encode(), mode=0o600)


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
