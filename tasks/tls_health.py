"""The way to a gateway below its first request: address, firewall, certificates on both sides.

Nothing is sent but a TLS handshake, so that a proxy that reads TLS is found before a site shows
who it is.
"""

import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from fl_core.errors import CampaignError, FedloomError, StoreUnavailable
from tasks.certificates import certificate_sha256, valid_until
from tasks.checks import Check, called
from tasks.gateway_access import TLS_CERTIFICATE, SiteDoor
from tasks.gateway_identity import is_loopback, pinned_certificate

CONNECT_S = 5.0
SCARCE_DAYS = 30
_COMPARE = (
    "a proxy reads TLS, or the gateway has a new certificate: compare fingerprints with the "
    "coordinator's operator, by voice, then run `fedloom site gateway --invite FILE`"
)


def tls_checks(door: SiteDoor) -> Iterator[Check]:
    """Check the connection, and both certificates; ends at the first step that fails."""
    is_direct = not _proxy(door)
    yield (way := called("way to the gateway", lambda: _connect(door), remedy=""))
    if way.verdict == "fail":
        return
    if is_direct and urlsplit(door.access.url).scheme == "https":
        yield (shown := _lasting("gateway's certificate", lambda: _shown(door)))
        if shown.verdict == "fail":
            return
    if door.access.identify == "certificate":
        path = door.home / TLS_CERTIFICATE
        yield _lasting("this site's certificate", lambda: (_pem(path), path.name))


def _connect(door: SiteDoor) -> str:
    """Open a connection and close it again."""
    host, port = _address(door)
    proxy = _proxy(door)
    if proxy:
        return f"through the proxy {proxy}"
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return f"{host} port {port} takes connections"
    except socket.gaierror as error:
        raise StoreUnavailable(
            f"no address for {host!r}", hint="check site.toml and this machine's name server"
        ) from error
    except TimeoutError as error:
        raise StoreUnavailable(
            f"nothing answers at {host} port {port}",
            hint=f"ask for outgoing tcp to {host} port {port} to be opened in the firewall",
        ) from error
    except OSError as error:
        raise StoreUnavailable(
            f"{host} port {port}: {error.strerror or error}",
            hint="ask the coordinator's operator whether the gateway runs, and at which port",
        ) from error


def _shown(door: SiteDoor) -> tuple[str, str]:
    """Return the certificate that the gateway shows, once it is the right one, and what it is."""
    host, port = _address(door)
    pinned = pinned_certificate(door)
    try:
        if pinned is None:
            return _trusted(host, port), f"for {host}, by a public authority"
        shown = ssl.get_server_certificate((host, port), timeout=CONNECT_S)
    except ssl.SSLCertVerificationError as error:
        raise StoreUnavailable(
            f"{host} is not trusted by this machine: {error.verify_message}", hint=_COMPARE
        ) from error
    except OSError as error:
        raise StoreUnavailable(
            f"no TLS at {host} port {port}: {error.strerror or error}",
            hint="check the port in site.toml",
        ) from error
    expected, found = certificate_sha256(_pem(pinned)), certificate_sha256(shown)
    if expected != found:
        raise StoreUnavailable(
            f"{host} shows certificate {found[:16]}, this site pinned {expected[:16]}",
            hint=_COMPARE,
        )
    return shown, f"{found[:16]}, as pinned"


def _trusted(host: str, port: int) -> str:
    """Make a handshake that trusts the machine's authorities, and return what was shown."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), timeout=CONNECT_S) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")


def _pem(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignError(
            f"{path}: cannot be read: {error}",
            hint="gateway.crt is in the coordinator's invite; `fedloom site rotate` makes tls.crt",
        ) from error


def _lasting(name: str, certificate: Callable[[], tuple[str, str]]) -> Check:
    """Judge how long a certificate is still good."""
    try:
        pem, found = certificate()
        certificate_sha256(pem)
    except FedloomError as error:
        return Check(name, "fail", str(error), error.hint)
    days = (valid_until(pem) - datetime.now(UTC)).days
    text = f"{found}, {days} days left"
    if days >= SCARCE_DAYS:
        return Check(name, "ok", text)
    remedy = "the coordinator makes a new one, and sites a rotation; do not wait for the last day"
    return Check(name, "fail" if days < 0 else "warn", text, remedy)


def _proxy(door: SiteDoor) -> str:
    """Return the proxy that requests go through, without the password that may be in its url."""
    parts = urlsplit(door.access.url)
    host = parts.hostname or ""
    if is_loopback(door.access.url) or urllib.request.proxy_bypass(host):
        return ""
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    named = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return f"{named.hostname}:{named.port}" if named.hostname else ""


def _address(door: SiteDoor) -> tuple[str, int]:
    parts = urlsplit(door.access.url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
