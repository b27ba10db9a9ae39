"""The gateway of a local stack: its files, its settings, its process.

Certificate, key and invite are made once, at the home's first start, and stay: every site pins the
certificate. So a name that the certificate does not carry is refused instead of being added, which
would make another certificate and shut every site out without a word.

The process has keys of its own for the store and none of the coordinator's.
"""

import ipaddress
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from flows.processes import LOOPBACK, Command, ServerProcess, answers, spawn, wait_until
from flows.servers import PREFECT_ENV
from flows.stack_file import BUCKET, StackFile
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.invite import Invite, read_invite

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?|::1?")
_ALWAYS = (LOOPBACK, "localhost")
# The loopback address on which a gateway is reached that listens on every address.
_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104  the user's choice is compared only


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


def prepare_gateway(home: Path, file: StackFile) -> Invite:
    """Make the certificate unless there is one, and write the invite; safe to repeat.

    Raises:
        CampaignError: A host cannot be one, or the certificate that sites pin does not name it.
    """
    files, hosts = GatewayFiles(home), _hosts(file)
    if not files.certificate.exists():
        # Not at the top: cryptography's certificates take a while that few commands need.
        from tasks.certificates import make_certificate

        make_certificate(
            files.certificate, files.key, common_name="fedloom-gateway", hosts=list(hosts)
        )
    elif files.invite.exists():
        _require_named(hosts, files)
    urls = [_url(host, file.gateway_port) for host in hosts]
    invite = Invite(
        url=urls[0],
        certificate=files.certificate.read_text(encoding="ascii"),
        other_urls=tuple(urls[1:]),
    )
    files.invite.write_bytes(to_bytes(invite))
    return invite


def local_invite(home: Path, file: StackFile) -> Invite:
    """Return the invite for a site on this machine, which needs no name from outside.

    Raises:
        CampaignError: The stack was never started.
    """
    invite = read_invite(GatewayFiles(home).invite)
    return Invite(url=local_url(file), certificate=invite.certificate)


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
    for host in file.gateway_hosts:
        if not _HOST.fullmatch(host):
            raise CampaignError(
                f"gateway host {host!r} is no name and no address of a machine, expected one "
                "without scheme, port or blanks, such as fedloom.example.org"
            )
    local = _EVERYWHERE.get(listen, listen)
    return tuple(dict.fromkeys((*file.gateway_hosts, local, *_ALWAYS)))


def _require_named(hosts: tuple[str, ...], files: GatewayFiles) -> None:
    named = {urlsplit(url).hostname for url in read_invite(files.invite).urls()}
    missing = [host for host in hosts if host.lower() not in named]
    if missing:
        raise CampaignError(
            f"the gateway's certificate does not name {', '.join(missing)}, and every site pins "
            f"it; to make another one, remove {files.certificate} and {files.invite}, start again "
            "and give every site the new invite"
        )


def _url(host: str, port: int) -> str:
    try:
        is_v6 = ipaddress.ip_address(host).version == 6  # noqa: PLR2004  the protocol's own number
    except ValueError:
        is_v6 = False
    return f"https://[{host}]:{port}" if is_v6 else f"https://{host}:{port}"
