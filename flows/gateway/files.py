"""The gateway's files: certificate, key, invite.

Made once and kept, because every site pins the certificate. A file that is there already, such as
a certificate of one's own authority, is used as it is.
"""

from pathlib import Path
from urllib.parse import urlsplit

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from tasks.certificates import certificate_sha256, make_certificate
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.invite import Invite, read_invite

INVITE = "invite.json"
_LOCAL = ("localhost", "127.0.0.1")


def prepared_invite(folder: Path, *, url: str | None) -> Invite:
    """Return the gateway's invite; with ``url``, make what is not there.

    Raises:
        CampaignError: There is none and no url, or one of another url.
    """
    path = folder / INVITE
    if path.exists():
        invite = read_invite(path)
        if url is not None and url.rstrip("/") not in {each.rstrip("/") for each in invite.urls()}:
            raise CampaignError(
                f"{path} names {invite.url}, and the gateway is to be {url}; sites have the first",
                hint=f"start with --url {invite.url}, or remove it and invite the sites again",
            )
        return invite
    if url is None:
        raise CampaignError(
            f"{path}: there is no invite yet", hint="state --url https://host:port, as sites use it"
        )
    host = urlsplit(url).hostname
    if not url.startswith("https://") or host is None:
        raise CampaignError(f"--url {url} is no https address, expected https://host:port")
    certificate, key = folder / TLS_CERTIFICATE, folder / TLS_KEY
    if not certificate.exists():
        hosts = tuple(dict.fromkeys((host, *_LOCAL)))
        make_certificate(certificate, key, common_name="fedloom-gateway", hosts=hosts)
    invite = Invite(url=url.rstrip("/"), certificate=certificate.read_text(encoding="ascii"))
    path.write_bytes(to_bytes(invite))
    return invite


def fingerprint_of(invite: Invite) -> str:
    """Return the SHA-256 of the gateway's certificate in groups, as people compare it."""
    if invite.certificate is None:
        return "of a public authority"
    digits = certificate_sha256(invite.certificate)
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))
