"""The gateway as a process: files, TLS, the port.

It starts without the store and without Prefect, answers ``/health`` at once, and refuses single
requests until what they need is there: at the start of a coordinator everything comes up together.
Outside this machine it listens with TLS only. Behind a proxy that ends TLS it listens on loopback,
where a signed token is the only thing that identifies a site.
"""

import ipaddress
import logging
import os
import resource
import ssl
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from fl_core.artifacts.store import ObjectStore, SizedStore
from fl_core.errors import CampaignError, ServerFailed
from flows.gateway.app import Gateway, make_app
from flows.gateway.connections import KEEP_ALIVE_S, protocol_of, server_context, trust
from flows.gateway.files import INVITE
from flows.gateway.identity import Identifier, Nonces
from flows.gateway.limits import Limits
from flows.gateway.members import Members, RosterWatch
from flows.gateway.prefect_door import PrefectAccess
from flows.gateway.record import Line, Record
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.invite import Invite, read_invite

NONCES = "nonces"
MAX_CONNECTIONS = 2000
_MAX_HEADER_BYTES = 16 << 10
_STOP_S = 1
_OWN_CGROUP = Path("/proc/self/cgroup")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a gateway listens.

    Attributes:
        folder: Its certificate, key, invite and record.
        host: Address to listen on.
        port: Port to listen on.
        behind_proxy: A proxy on this machine ends TLS.
    """

    folder: Path
    host: str
    port: int
    behind_proxy: bool = False


def serve(
    listening: Listening,
    store: ObjectStore,
    *,
    prefect_url: str | None,
    prefect_auth: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that wait are cut off then.

    Args:
        listening: Where.
        store: The campaigns' store.
        prefect_url: Prefect's API behind the gateway, or None where there is none.
        prefect_auth: ``user:password`` of that API, or None where it asks for none.
        limits: What is granted; None for the defaults.

    Raises:
        CampaignError: No certificate or invite, or an address that may not be listened on.
        ServerFailed: The port has another listener.
    """
    invite = read_invite(listening.folder / INVITE)
    _require_safe(listening)
    if not isinstance(store, SizedStore):
        raise CampaignError(
            f"the gateway is given a {type(store).__name__}, expected the campaigns' own store; "
            "name a bucket or a folder in FEDLOOM_STORE"
        )
    record = Record(listening.folder)
    context = None if listening.behind_proxy else _context(listening.folder, record)

    def on_change(members: Members) -> None:
        log.info("roster read version=%d", members.roster.version)
        if context is not None:
            trust(context, members.certificates())

    gateway = Gateway(
        store=store,
        prefect=PrefectAccess(prefect_url, prefect_auth),
        identifier=Identifier(_urls(invite, listening), Nonces(listening.folder / NONCES)),
        roster=RosterWatch(store, on_change),
        record=record,
        version=version("fedloom"),
        limits=limits or Limits(body_bytes=_room()),
    )
    _allow_connections()
    server = uvicorn.Server(_config(gateway, listening, context))
    try:
        server.run()
    except SystemExit as error:
        raise ServerFailed(
            f"the gateway cannot listen on {listening.host}:{listening.port}, expected a free "
            "port of this machine; stop what listens there, or state another port"
        ) from error
    finally:
        record.close()


def _config(
    gateway: Gateway, listening: Listening, context: ssl.SSLContext | None
) -> uvicorn.Config:
    def on_refused(address: str, why: str) -> None:
        gateway.record.write(Line(method="", path="", address=address, status=400, detail=why))

    return uvicorn.Config(
        make_app(gateway),
        host=listening.host,
        port=listening.port,
        http=protocol_of(on_refused),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_S,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )


def _context(folder: Path, record: Record) -> ssl.SSLContext:
    certificate, key = folder / TLS_CERTIFICATE, folder / TLS_KEY
    try:
        return server_context(
            certificate,
            key,
            on_refused=lambda why: record.write(Line(method="TLS", path="", detail=why)),
        )
    except (OSError, ssl.SSLError) as error:
        raise CampaignError(
            f"the gateway's certificate {certificate} or key {key} cannot be used "
            f"({type(error).__name__}), expected a pair of PEM files",
            hint="`fedloom up` makes them at its first start, `fedloom gateway start --url` too",
        ) from error


def _require_safe(listening: Listening) -> None:
    if listening.behind_proxy and not _is_loopback(listening.host):
        raise CampaignError(
            f"--behind-proxy listens without TLS, and {listening.host} is not this machine alone, "
            "expected a loopback address such as 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _urls(invite: Invite, listening: Listening) -> tuple[str, ...]:
    # Behind a proxy the scheme at the site is the proxy's, so it is in the invite.
    port = listening.port
    names = {urlsplit(url).hostname for url in invite.urls()}
    return (*invite.urls(), *(f"https://{name}:{port}" for name in sorted(filter(None, names))))


def port_of(url: str) -> int:
    """Return the port of a gateway's address."""
    return urlsplit(url).port or 443


def _room() -> int:
    """Return how many bytes of bodies are held: a gigabyte, or a quarter of the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(Limits().body_bytes, memory // 4, *(each // 4 for each in memory_limits()))


def memory_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = _OWN_CGROUP) -> list[int]:
    """Return the limits in bytes that control groups set to this process; none where none do.

    Args:
        root: Where the groups are mounted; in a container its own group is the root.
        own: File that names the groups of this process.
    """
    inner = [line.split(":", 2)[-1].strip("/") for line in _text(own).splitlines()]
    found = [
        _text(folder / name)
        for at in ("", *inner)
        for folder, name in (
            (root / at, "memory.max"),
            (root / "memory" / at, "memory.limit_in_bytes"),
        )
    ]
    return [int(text) for text in found if text.isdigit()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _allow_connections() -> None:
    """Let this process hold as many connections as it may; the usual 1024 files are soon taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, 4 * MAX_CONNECTIONS)), hard))
