"""The servers of a local stack: S3 (SeaweedFS), Prefect, MLflow.

Each function starts one real server as a child process on loopback, waits until it is healthy
and returns its handle; ``flows.processes.stop`` ends it. Defaults of these servers that would
surprise are switched off here in code: usage statistics, extra listeners, job execution, results
that are pickled. PostgreSQL has its own module, because it also has databases and a user.
"""

import json
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_core.errors import ServerFailed
from flows.processes import (
    LOOPBACK,
    Command,
    ServerProcess,
    answers,
    fetch_text,
    free_port,
    free_ports,
    require_free_ports,
    spawn,
    wait_healthy,
    wait_until,
)
from flows.seaweed_security import write_security

PREFECT_ENV = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_CLI_COLORS": "false",
}
"""Settings of every Prefect process, server and client alike."""

MLFLOW_ENV = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
}
"""Settings of the MLflow server."""

# A browser's open socket can hold a web server's polite end for ever; its data are in a database.
_WEB_GRACE_S = 8.0
# A volume server's row on the master's page: its address, then how many volumes it has.
_VOLUMES = re.compile(r"/ui/index.html\">[^<]*</a>\s*</td>\s*<td>(\d+)</td>")


@dataclass(frozen=True, slots=True)
class SeaweedPorts:
    """The ports of one SeaweedFS server; ``s3`` asks for keys, the others answer to nobody else.

    They name unix sockets in ``/tmp``, so two servers need different ports even with different
    folders.
    """

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int

    @classmethod
    def draw(cls) -> "SeaweedPorts":
        """Eight distinct ports that are free now."""
        return cls(*free_ports(8))

    def all(self) -> list[int]:
        """Every port, the S3 port first."""
        return [getattr(self, name) for name in self.__slots__]


@dataclass(frozen=True, slots=True)
class S3Identity:
    """One set of S3 credentials.

    Attributes:
        name: Who it is for.
        access_key: Public half.
        secret_key: Secret half.
        actions: SeaweedFS actions: ``Admin``, or ``Read:bucket/prefix``, ``Write:bucket``,
            ``List:bucket``. Write includes the deletion of objects.
    """

    name: str
    access_key: str
    secret_key: str = field(repr=False)
    actions: tuple[str, ...] = ("Admin",)

    def as_json(self) -> dict[str, object]:
        """The identity as SeaweedFS' S3 configuration file states it."""
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        return {"name": self.name, "credentials": keys, "actions": list(self.actions)}


def program(name: str) -> str:
    """The path of a program that was installed with this Python environment.

    Raises:
        ServerFailed: It is not installed.
    """
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        raise ServerFailed(
            f"program {name!r} is not in {path.parent}, expected it from the extra 'server'",
            hint="run `make install` in a checkout, or install the wheel with its extra `server`",
        )
    return str(path)


def start_seaweed(
    folder: Path,
    *,
    access_key: str,
    secret_key: str,
    ports: SeaweedPorts | None = None,
    identities: Sequence[S3Identity] = (),
) -> ServerProcess:
    """Start an S3 server on loopback and wait until it is healthy.

    Args:
        folder: Data, configuration and log of this server; made when absent, reused when not.
        access_key: Access key of the administrator.
        secret_key: Its secret.
        ports: Which ports to use, or None for free ones.
        identities: More credentials, with fewer rights.

    Returns:
        The process; ``url`` is the S3 endpoint.

    Raises:
        PortInUse: A port has a listener.
        ServerFailed: It ended, or was not healthy in time.
    """
    ports = ports or SeaweedPorts.draw()
    require_free_ports("s3", ports.all())
    folder = folder.resolve()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    config = write_identities(
        folder, access_key=access_key, secret_key=secret_key, identities=identities
    )
    command = Command(
        name="s3",
        argv=[program("weed"), *_weed_arguments(folder / "data", config, ports)],
        env={},
        folder=folder / "work",
        log_path=folder / "server.log",
        url=f"http://{LOOPBACK}:{ports.s3}",
        # Asked to end, seaweedfs 4.48 waits 15 s for its own streams before it closes anything;
        # what it has acknowledged is written already, so killing it loses nothing.
        grace_s=1.0,
    )
    write_security(command.folder, host=LOOPBACK)
    volumes = len(list((folder / "data").glob("*.dat")))
    return wait_until(spawn(command), lambda: _is_serving(ports, n_volumes=volumes), timeout_s=90)


def write_identities(
    folder: Path, *, access_key: str, secret_key: str, identities: Sequence[S3Identity] = ()
) -> Path:
    """Write the file of S3 identities, the administrator first; a running server needs SIGHUP."""
    config = folder / "s3.json"
    everyone = (S3Identity("coordinator", access_key, secret_key), *identities)
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": [each.as_json() for each in everyone]}))
    return config


def _is_serving(ports: SeaweedPorts, *, n_volumes: int) -> bool:
    # /healthz alone is green before the master knows its volumes: old objects then answer 500.
    if not answers(f"http://{LOOPBACK}:{ports.s3}/healthz"):
        return False
    # seaweedfs 4.48: with -disableHttp the master still shows this page, and answers nothing else.
    page = fetch_text(f"http://{LOOPBACK}:{ports.master}/")
    known = [int(count) for count in _VOLUMES.findall(page)]
    return bool(known) and sum(known) >= n_volumes


def _weed_arguments(data: Path, config: Path, ports: SeaweedPorts) -> list[str]:
    return [
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-master.port={ports.master}",
        f"-master.port.grpc={ports.master_grpc}",
        f"-volume.port={ports.volume}",
        f"-volume.port.grpc={ports.volume_grpc}",
        "-filer",
        f"-filer.port={ports.filer}",
        f"-filer.port.grpc={ports.filer_grpc}",
        "-s3",
        f"-s3.port={ports.s3}",
        f"-s3.port.grpc={ports.s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
        "-disableHttp",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        # One master elects itself; with the default of 10 s each restart takes as long.
        "-master.electionTimeout=1s",
        "-volume.max=0",
        "-volume.preStopSeconds=0",
    ]


def start_prefect(
    folder: Path, *, database_url: str | None = None, port: int | None = None
) -> ServerProcess:
    """Start a Prefect server with its UI and wait until it is healthy.

    Args:
        folder: PREFECT_HOME, working folder and log of the server.
        database_url: SQLAlchemy address of PostgreSQL (``postgresql+asyncpg://...``), or None for
            an SQLite file in ``folder``: good for a few runs, it locks under several workers.
        port: Port of API and UI, or None for a free one.

    Returns:
        The process; ``url`` is the UI, ``url + "/api"`` the API.

    Raises:
        PortInUse: The port has a listener.
        ServerFailed: It ended, or was not healthy in time.
    """
    port = port or free_port()
    require_free_ports("prefect", [port])
    folder = folder.resolve()
    home = folder / "home"
    database = database_url or f"sqlite+aiosqlite:///{home}/prefect.db"
    url = f"http://{LOOPBACK}:{port}"
    home.mkdir(parents=True, exist_ok=True)
    command = Command(
        name="prefect",
        argv=[program("prefect"), "server", "start", "--host", LOOPBACK, "--port", str(port)],
        env=PREFECT_ENV
        | {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_UI_API_URL": f"{url}/api",
            # The default is inside the installed package: two servers would overwrite each other.
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        },
        folder=folder / "work",
        log_path=folder / "server.log",
        url=url,
        grace_s=_WEB_GRACE_S,
    )
    return wait_healthy(spawn(command), "/api/health")


@dataclass(frozen=True, slots=True)
class S3Access:
    """How a server reaches an S3 bucket."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables that boto3 and MLflow's S3 artifact repository read."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def start_mlflow(
    folder: Path,
    *,
    backend_uri: str | None = None,
    artifacts_uri: str | None = None,
    s3: S3Access | None = None,
    port: int | None = None,
) -> ServerProcess:
    """Start an MLflow server that also serves the artifacts, and wait until it is healthy.

    Args:
        folder: Working folder and log of the server, and its data where no address is given.
        backend_uri: ``postgresql+psycopg2://...``, or None for an SQLite file in ``folder``.
        artifacts_uri: Where it keeps artifacts, such as ``s3://mlflow``, or None for a folder.
        s3: Credentials for an ``s3://`` address; clients need none, artifacts pass the server.
        port: Port of API and UI, or None for a free one.

    Returns:
        The process; ``url`` is the tracking URI and the UI.

    Raises:
        PortInUse: The port has a listener.
        ServerFailed: It ended, or was not healthy in time.
    """
    port = port or free_port()
    require_free_ports("mlflow", [port])
    folder = folder.resolve()
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    backend = backend_uri or f"sqlite:///{folder}/mlflow.db"
    destination = artifacts_uri or (folder / "artifacts").as_uri()
    command = Command(
        name="mlflow",
        argv=[
            *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)),
            *("--workers", "1"),
        ],
        # Not as arguments: everybody on the machine can read those, and an address may hold a
        # password.
        env=MLFLOW_ENV
        | {"MLFLOW_BACKEND_STORE_URI": backend, "MLFLOW_ARTIFACTS_DESTINATION": destination}
        | (s3.environment() if s3 else {}),
        folder=folder / "work",
        log_path=folder / "server.log",
        url=f"http://{LOOPBACK}:{port}",
        grace_s=_WEB_GRACE_S,
    )
    return wait_healthy(spawn(command), "/health")
