"""The gateway's files: certificate, key, invite.

Certificate and key are made once and kept, because every site pins the certificate; a pair that is
there already, such as one of one's own, is used as it is. The invite is written from them at each
start, so that it names the certificate that will be shown. A name that the certificate does not
carry is no obstacle: a site trusts the one certificate that it pinned, under whatever name.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.replacing import replace_file
from fl_core.errors import CampaignError
from tasks.certificates import certificate_sha256, make_certificate
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.invite import Invite, read_invite

INVITE = "invite.json"
_LOCAL = ("localhost", "127.0.0.1")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

log = logging.getLogger(__name__)


def prepared_invite(
    folder: Path,
    *,
    urls: Sequence[str] = (),
    is_behind_proxy: bool = False,
    tell: Callable[[str], None] = log.warning,
) -> Invite:
    """Make certificate and key unless they are there, and return the invite, written afresh.

    Args:
        folder: Where they lie.
        urls: All addresses of the gateway, the one that sites are given first; none keeps those of
            the invite that is there.
        is_behind_proxy: The proxy's certificate is what sites see, so the invite's stays.
        tell: Told when sites that hold the invite of before need this one.

    Raises:
        CampaignError: No address is known, or one is none; or the pair of files cannot be used.
    """
    path = folder / INVITE
    stated = tuple(dict.fromkeys(_checked(url) for url in urls))
    before = read_invite(path) if path.exists() else None
    if before is None and not stated:
        raise CampaignError(
            f"{path}: there is no invite yet", hint="state --url https://host:port, as sites use it"
        )
    if before is not None and (is_behind_proxy or before.certificate is None):
        certificate = before.certificate
    else:
        certificate = _certificate(folder, stated, needs_key=not is_behind_proxy)
    first, *others = stated or (before.urls() if before is not None else ())
    invite = Invite(url=first, certificate=certificate, other_urls=tuple(others))
    if invite != before:
        replace_file(path, to_bytes(invite))
    if before is not None and _parts_sites(before, invite):
        tell(
            f"the gateway has another address or certificate than before: give every site {path} "
            "again, which it takes by `fedloom site gateway --invite invite.json`"
        )
    return invite


def is_host(text: str) -> bool:
    """Say whether a text is a machine's name or address, without port or brackets."""
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return _NAME.fullmatch(text) is not None


def fingerprint_of(invite: Invite) -> str:
    """Return the SHA-256 of the gateway's certificate in groups, as people compare it."""
    if invite.certificate is None:
        return "of a public authority"
    digits = certificate_sha256(invite.certificate)
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def _checked(url: str) -> str:
    plain = url.rstrip("/")
    try:
        parts = urlsplit(plain)
        # Reading a port or brackets that are none raises.
        is_plain = plain == f"{parts.scheme}://{parts.netloc}" and parts.port != 0
        host = parts.hostname or ""
    except ValueError:
        is_plain, host = False, ""
    if not (is_plain and parts.scheme == "https" and "@" not in parts.netloc and is_host(host)):
        raise CampaignError(
            f"gateway url {url!r} is no https address, expected https://host:port and nothing after"
        )
    return plain


def _certificate(folder: Path, urls: Sequence[str], *, needs_key: bool) -> str:
    certificate, key = folder / TLS_CERTIFICATE, folder / TLS_KEY
    if not certificate.exists():
        hosts = dict.fromkeys((*(urlsplit(url).hostname or "" for url in urls), *_LOCAL))
        return make_certificate(certificate, key, common_name="fedloom-gateway", hosts=[*hosts])
    if needs_key and not key.exists():
        raise CampaignError(
            f"{certificate} has no key beside it, expected {key}; restore it from the backup, or "
            "remove the certificate: another pair is made, and every site needs the new invite"
        )
    try:
        pem = certificate.read_text(encoding="ascii")
        certificate_sha256(pem)
    except (OSError, UnicodeDecodeError, CampaignError) as error:
        raise CampaignError(
            f"{certificate} is not one readable certificate in PEM, expected what sites pin; put "
            "the one certificate of the key there, without those that signed it"
        ) from error
    return pem


def _parts_sites(before: Invite, now: Invite) -> bool:
    return before.certificate != now.certificate or not set(before.urls()) <= set(now.urls())
