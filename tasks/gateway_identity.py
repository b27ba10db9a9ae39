"""Who the gateway is to a site, and how the site shows who it is.

The gateway's certificate is pinned where the config names one: then that file is all that is
trusted, whatever authorities the machine knows, and the host's name does not matter, because the
key does. The site's own part is its TLS certificate, or a signature on each request where TLS ends
at a proxy. Both are read again when their files change, so a rotated key needs no restart.
"""

import ipaddress
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fl_core.artifacts.documents import sha256_hex
from fl_core.errors import StoreUnavailable
from fl_core.updates.signing import SigningKey, read_key
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY, SiteDoor
from tasks.request_token import BODY_SHA256, SignedRequest, authorization

TOKEN_S = 60
# Lengths and hashes are of the bytes as they are; the library's own name and version are nobody's
# business.
HEADERS = {"accept-encoding": "identity", "user-agent": "fedloom"}
_SIGNING_KEY = "key.pem"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a site's connections are made with.

    Attributes:
        verify: TLS context; False for a gateway on this machine that a proxy stands before.
        door: The site and its gateway.
        key: Signs every request; None where the certificate is enough.
        is_local: The gateway is on this machine, so no proxy of the environment is asked.
        stamp: Changes when a file does that this was read from.
    """

    verify: ssl.SSLContext | bool
    door: SiteDoor
    key: SigningKey | None
    is_local: bool
    stamp: tuple[int, ...]

    def headers(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """Return what one request carries to be known and whole; a token counts once.

        Args:
            method: HTTP method.
            target: Path with query, as it stands on the request's line.
            body: The body, empty for none.
        """
        digest = sha256_hex(body)
        headers = {BODY_SHA256: digest} if body or method not in {"GET", "HEAD"} else {}
        if self.key is not None:
            request = SignedRequest(
                url=self.door.access.url,
                site=self.door.site,
                method=method,
                target=target,
                body_sha256=digest,
                expires=int(time.time()) + TOKEN_S,
                nonce=secrets.token_hex(16),
            )
            headers["Authorization"] = authorization(request, self.key)
        return headers


def read_identity(door: SiteDoor) -> Identity:
    """Read certificates and keys from the site's folder.

    Raises:
        StoreUnavailable: A file is absent or cannot be used, or the URL is not safe.
        CampaignError: The signing key cannot be read.
    """
    stamp = identity_stamp(door)
    access = door.access
    is_token = access.identify == "token"
    local = is_loopback(access.url)
    verify: ssl.SSLContext | bool = False
    if access.url.lower().startswith("https:"):
        verify = _context(door, shows_certificate=not is_token)
    elif not (local and is_token):
        raise StoreUnavailable(
            f"the gateway's url {access.url!r} is not https, and what leaves a site is encrypted",
            hint="write the https url of the invite into site.toml",
        )
    key = read_key(door.home / _SIGNING_KEY) if is_token else None
    return Identity(verify=verify, door=door, key=key, is_local=local, stamp=stamp)


def identity_stamp(door: SiteDoor) -> tuple[int, ...]:
    """Return a number for each file that an identity is read from; absent counts as 0."""
    return tuple(_modified(path) for path in _files(door))


def pinned_certificate(door: SiteDoor) -> Path | None:
    """Return the file with the one certificate that is trusted, or None for the machine's own."""
    pinned = door.access.certificate
    return None if pinned is None else door.home / pinned


def _context(door: SiteDoor, *, shows_certificate: bool) -> ssl.SSLContext:
    pinned = pinned_certificate(door)
    own = (door.home / TLS_CERTIFICATE, door.home / TLS_KEY)
    try:
        context = ssl.create_default_context(cafile=pinned)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if pinned is not None:
            # One key is trusted, under whatever name or address its host is reached.
            context.check_hostname = False
        if shows_certificate:
            context.load_cert_chain(*own)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(map(str, (pinned, *own) if shows_certificate else (pinned,)))
        raise StoreUnavailable(
            f"the certificates of this site cannot be used ({type(error).__name__}), expected "
            f"PEM files at {files}",
            hint="restore them, or make new ones with `fedloom site rotate`",
        ) from error
    return context


def _files(door: SiteDoor) -> list[Path]:
    own = (
        [door.home / _SIGNING_KEY]
        if door.access.identify == "token"
        else [door.home / TLS_CERTIFICATE, door.home / TLS_KEY]
    )
    pinned = pinned_certificate(door)
    return own if pinned is None else [*own, pinned]


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def is_loopback(url: str) -> bool:
    """Say whether a url is of this machine, so that no proxy is asked."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
