"""The gateway of a local stack: its files, its settings, its process.

Certificate and key are made once, at the home's first start, and stay: every site pins the
certificate. Names and port may change later; the invite follows, and so do the home's own sites.

The process has keys of its own for the store and none of the coordinator's.
"""

import ipaddress
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import CampaignError
from flows.processes import LOOPBACK, Command, ServerProcess, answers, spawn, wait_until
from flows.servers import PREFECT_ENV
from flows.stack_file import BUCKET, StackFile
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.invite import Invite, read_invite

_ALWAYS = (LOOPBACK, "localhost")
# The loopback address on which a gateway is reached that listens on every address.
_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104  the user's choice is compared only


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    """The gateway's files in a stack's home."""

    home: Path

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.home / "gateway"

    @property
    def certificate(self) -> Path:
        """The certificate that sites pin."""
        return self.folder / TLS_CERTIFICATE

    @property
    def key(self) -> Path:
        """Its private key, mode 0600."""
        return self.folder / TLS_KEY

    @property
    def invite(self) -> Path:
        """What sites' operators are given."""
        return self.folder / "invite.json"


def prepare_gateway(
    home: Path, file: StackFile, *, tell: Callable[[str], None] | None = None
) -> Invite:
    """Make the certificate unless there is one, and write the invite; safe to repeat.

    Args:
        home: The stack's home.
        file: Ports and names of the stack.
        tell: Told when sites on other machines need another invite.

    Raises:
        CampaignError: A host cannot be one, or certificate and key cannot be used.
    """
    urls = [_url(host, file.gateway_port) for host in _hosts(file)]
    # Not at the top: cryptography's certificates take a while that few commands need.
    from flows.gateway.files import prepared_invite

    return prepared_invite(GatewayFiles(home).folder, urls=urls, tell=tell or log.warning)


def local_invite(home: Path, file: StackFile) -> Invite:
    """Return the invite for a site on this machine, which needs no name from outside.

    Raises:
        CampaignError: The stack was never started.
    """
    files = GatewayFiles(home)
    read_invite(files.invite)
    pem = files.certificate.read_text(encoding="ascii")
    return Invite(url=local_url(file), certificate=pem)


def local_url(file: StackFile) -> str:
    """Return the address at which this machine reaches its gateway."""
    return _url(_EVERYWHERE.get(file.gateway_listen, file.gateway_listen), file.gateway_port)


def gateway_environment(home: Path, file: StackFile) -> dict[str, str]:
    """The settings of the gateway: keys that open what sites may use, nothing of MLflow."""
    return {
        **PREFECT_ENV,
        "PREFECT_API_URL": f"{file.prefect_url}/api",
        "FEDLOOM_HOME": str(home),
        "FEDLOOM_STORE": f"s3://{BUCKET}",
        "FEDLOOM_S3_ENDPOINT": file.s3_endpoint,
        "FEDLOOM_S3_ACCESS_KEY": file.gateway.access_key,
        "FEDLOOM_S3_SECRET_KEY": file.gateway.secret_key,
    }


def start_gateway(home: Path, file: StackFile) -> ServerProcess:
    """Start the gateway and wait until it answers; Prefect may still be on its way up.

    Raises:
        CampaignError: As ``prepare_gateway``.
        ServerFailed: It ended, or was not healthy in time.
    """
    prepare_gateway(home, file)
    folder = GatewayFiles(home).folder
    command = Command(
        name="gateway",
        argv=[
            *(sys.executable, "-m", "flows.cli.main", "gateway", "start", "--home", str(home)),
            *("--host", file.gateway_listen, "--port", str(file.gateway_port)),
        ],
        env=gateway_environment(home, file),
        folder=folder / "work",
        log_path=folder / "server.log",
        url=local_url(file),
        # Requests that wait for a plan are cut off; sites ask again.
        grace_s=5.0,
    )
    return wait_until(spawn(command), lambda: gateway_answers(home, file))


def gateway_answers(home: Path, file: StackFile) -> bool:
    """Say whether the gateway answers with the certificate that sites pin."""
    certificate = GatewayFiles(home).certificate
    return certificate.exists() and answers(f"{local_url(file)}/health", trusted=certificate)


def _hosts(file: StackFile) -> tuple[str, ...]:
    listen = file.gateway_listen
    if listen in _EVERYWHERE and not file.gateway_hosts:
        raise CampaignError(
            f"the gateway is to listen on {listen} and no name is stated under which sites reach "
            "it, expected at least one; add --gateway-host NAME"
        )
    from flows.gateway.files import is_host

    for host in file.gateway_hosts:
        if not is_host(host):
            raise CampaignError(
                f"gateway host {host!r} is no name and no address of a machine, expected one "
                "without scheme, port or blanks, such as fedloom.example.org"
            )
    local = _EVERYWHERE.get(listen, listen)
    return tuple(dict.fromkeys((*file.gateway_hosts, local, *_ALWAYS)))


def _url(host: str, port: int) -> str:
    try:
        is_v6 = ipaddress.ip_address(host).version == 6  # noqa: PLR2004  the protocol's own number
    except ValueError:
        is_v6 = False
    return f"https://[{host}]:{port}" if is_v6 else f"https://{host}:{port}"
