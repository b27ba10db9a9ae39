"""How a site reaches the coordinator's gateway, and shows who it is."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Name

TLS_CERTIFICATE = "tls.crt"
TLS_KEY = "tls.key"
ROTATION = "rotation.json"
"""Present while a change of a site's keys is pending."""
GatewayUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@]+$")]


class GatewayAccess(Document):
    """The sites' door at the coordinator: all that a site ever connects to.

    Attributes:
        url: ``https://host:port``.
        certificate: File beside the config with the one certificate that is trusted; None trusts
            the authorities of this machine.
        identify: How the site shows who it is: ``certificate`` (mutual TLS), or ``token``: every
            request signed, for a way through a proxy that ends TLS.
    """

    url: GatewayUrl
    certificate: Path | None = None
    identify: Literal["certificate", "token"] = "certificate"


class SiteDoor(Document):
    """One site's way through the gateway.

    Attributes:
        site: The site's name.
        home: The site's folder: TLS key and certificate, signing key, record of what left.
        access: Where the gateway is.
    """

    site: Name
    home: Path
    access: GatewayAccess
