"""The invite: what a site's operator is given, to reach the coordinator's gateway.

Two facts and no secret: the address, and the one certificate that will answer there. Whoever can
swap the file on its way can pose as the coordinator, so it goes the same way as the fingerprints
that are compared by voice; the certificate's fingerprint is shown where the file is made and where
it is used.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fl_core.artifacts.documents import Document
from fl_core.errors import CampaignError
from tasks.gateway_access import GatewayAccess, GatewayUrl
from tasks.handed_files import read_handed

GATEWAY_CERTIFICATE = "gateway.crt"


class Invite(Document):
    """How a gateway is reached.

    Attributes:
        url: ``https://host:port``, what sites write into their config.
        certificate: PEM of the only certificate that is trusted there; None where the gateway's is
            signed by a public authority.
        other_urls: Further addresses of the same gateway; a request signed for one of them counts.
    """

    url: GatewayUrl
    certificate: Annotated[str, Field(max_length=4096)] | None = None
    other_urls: tuple[GatewayUrl, ...] = ()

    def urls(self) -> tuple[str, ...]:
        """Return every address, the first one first."""
        return (self.url, *self.other_urls)

    def access(self) -> GatewayAccess:
        """Return how a site reaches the gateway, with the pinned certificate beside its config."""
        pinned = None if self.certificate is None else Path(GATEWAY_CERTIFICATE)
        return GatewayAccess(url=self.url, certificate=pinned)


def read_invite(path: Path) -> Invite:
    """Read the invite that a coordinator gave.

    Raises:
        CampaignError: Absent, not an invite, or its certificate is none.
    """
    hint = "it is the invite.json that `fedloom gateway show` names at the coordinator"
    invite = read_handed(Invite, path, hint=hint)
    if invite.certificate is not None:
        # Not at the top: every command knows this module, few read an invite.
        from tasks.certificates import certificate_sha256

        certificate_sha256(invite.certificate)
    return invite


def accept_invite(invite: Invite, root: Path) -> GatewayAccess:
    """Write the gateway's certificate into a site's folder, and return how the site reaches it.

    Raises:
        CampaignError: The site pins another certificate already.
    """
    if invite.certificate is None:
        return invite.access()
    pinned = root / GATEWAY_CERTIFICATE
    if pinned.exists() and pinned.read_text(encoding="ascii") != invite.certificate:
        raise CampaignError(
            f"{pinned} is another certificate than the invite's, expected the same; who sent the "
            "invite is not who the site knows, or the gateway was made anew",
            hint="compare fingerprints with the coordinator's operator; a site takes another "
            "invite by `fedloom site gateway --invite FILE`",
        )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    pinned.write_text(invite.certificate, encoding="ascii")
    return invite.access()
