"""The S3 server as its image starts it: who has which rights, and what its other port asks for."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_core.errors import StoreUnavailable
from flows.deployment_secrets import write_secrets
from flows.processes import (
    Command,
    ServerProcess,
    ended_with_this_process,
    spawn,
    stop,
    wait_healthy,
)
from flows.servers import SeaweedPorts, program
from tasks.object_store import S3Location, S3Store, connect, ensure_bucket

DOCKER = Path(__file__).parents[2] / "docker"
# As the image's files name them.
GRPC = "/tmp/grpc"  # noqa: S108  a folder of the image
ANY_ADDRESS = "0.0.0.0"  # noqa: S104  inside a container


@pytest.fixture(scope="module")
def secrets_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    write_secrets(folder)
    return folder


@pytest.fixture(scope="module")
def ports() -> SeaweedPorts:
    return SeaweedPorts.draw()


@pytest.fixture(scope="module")
def server(tmp_path_factory, secrets_folder, ports) -> Iterator[ServerProcess]:
    """The image's own script and settings, with folders and ports of this test."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "data").mkdir()
    settings = folder / ".seaweedfs"
    settings.mkdir()
    grpc = f"{folder}/grpc"
    text = (DOCKER / "security.toml").read_text(encoding="utf-8")
    (settings / "security.toml").write_text(text.replace(GRPC, grpc))
    script = (DOCKER / "serve-s3").read_text(encoding="utf-8")
    for found, own in {
        GRPC: grpc,
        "/var/lib/s3": f"{folder}/data",
        "/run/secrets": str(secrets_folder),
        ANY_ADDRESS: "127.0.0.1",
        "-s3.port=8333": " ".join(stated_ports(ports)),
        "exec weed": f"exec {program('weed')}",
    }.items():
        assert found in script
        script = script.replace(found, own)
    (folder / "serve-s3").write_text(script)
    command = Command(
        name="s3",
        argv=["sh", str(folder / "serve-s3")],
        env={"HOME": str(folder)},
        folder=folder,
        log_path=folder / "log",
        url=f"http://127.0.0.1:{ports.s3}",
        grace_s=1.0,
    )
    with ended_with_this_process():
        process = wait_healthy(spawn(command), "/healthz")
        _make_buckets(process.url, secrets_folder)
        yield process
        stop(process)


def stated_ports(ports: SeaweedPorts) -> list[str]:
    return [
        *(f"-s3.port={ports.s3}", f"-s3.port.grpc={ports.s3_grpc}"),
        *(f"-master.port={ports.master}", f"-master.port.grpc={ports.master_grpc}"),
        *(f"-volume.port={ports.volume}", f"-volume.port.grpc={ports.volume_grpc}"),
        *(f"-filer.port={ports.filer}", f"-filer.port.grpc={ports.filer_grpc}"),
    ]


def _make_buckets(url: str, secrets_folder: Path) -> None:
    deadline = time.monotonic() + 60
    for bucket in ("fedloom", "mlflow"):
        while True:
            try:
                ensure_bucket(store_of("coordinator", url, secrets_folder, bucket=bucket))
                break
            except StoreUnavailable:
                # It is healthy a moment before its parts know each other.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def store_of(user: str, url: str, secrets_folder: Path, *, bucket: str = "fedloom") -> S3Store:
    secret = (secrets_folder / f"s3_{user}").read_text()
    location = S3Location(bucket, endpoint=url, access_key=f"fedloom-{user}", secret_key=secret)
    return connect(location)


def test_keys_of_the_secrets_open_what_their_user_needs(server, secrets_folder):
    coordinator = store_of("coordinator", server.url, secrets_folder)
    gateway = store_of("gateway", server.url, secrets_folder)
    tracking = store_of("mlflow", server.url, secrets_folder, bucket="mlflow")
    update = "campaigns/c/rounds/0001/updates/north/manifest.json"

    assert coordinator.put_once("campaigns/c/campaign.json", b"{}")
    assert gateway.get("campaigns/c/campaign.json") == b"{}"
    assert gateway.put_once(update, b"signed")
    assert not gateway.put_once(update, b"another")
    assert coordinator.get(update) == b"signed"
    assert tracking.put_once("1/model", b"adapter")


@pytest.mark.parametrize(
    ("user", "bucket", "key"),
    [
        ("gateway", "fedloom", "campaigns/c/rounds/0001/plan.json"),
        ("gateway", "fedloom", "rosters/000001.json"),
        ("gateway", "mlflow", "1/model"),
        ("evaluation", "fedloom", "campaigns/c/rounds/0001/outcome.json"),
        ("mlflow", "fedloom", "campaigns/c/rounds/0001/plan.json"),
    ],
)
def test_key_of_one_service_writes_nothing_of_another(server, secrets_folder, user, bucket, key):
    store = store_of(user, server.url, secrets_folder, bucket=bucket)

    with pytest.raises(StoreUnavailable):
        store.put_once(key, b"forged")


def test_port_over_which_rights_are_given_refuses_whoever_has_no_certificate(server, ports):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])

    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|certificate required"):
        _say_hello(ports.s3_grpc, context)


def test_port_over_which_rights_are_given_opens_to_the_servers_own_certificate(server, ports):
    folder = server.log_path.parent / "grpc"
    context = ssl.create_default_context(cafile=str(folder / "tls.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])

    # The server's first frame of HTTP/2 is its settings: length, then type 4.
    assert _say_hello(ports.s3_grpc, context)[3] == 4
    assert (folder / "tls.key").stat().st_mode & 0o077 == 0


def _say_hello(port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        return connection.recv(64)
