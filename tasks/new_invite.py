"""Taking a new invite at a site that is there: another address, or another certificate.

The gateway's key may be lost, its machine moved, its certificate near its end, or a proxy set in
between. Who hands out the invite decides what the site trusts from then on, so the operator is
shown both fingerprints and asked before anything is written. What else stands in the config stays.
"""

import re
import tomllib
from pathlib import Path

from fl_core.artifacts.replacing import replace_file
from fl_core.errors import CampaignError
from tasks.gateway_access import GatewayAccess
from tasks.invite import GATEWAY_CERTIFICATE, Invite
from tasks.site_config import SiteConfig, SiteHome, checked_config, config_text, way_in_text

_TABLE = re.compile(r"^\[gateway\].*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)


def invited_access(config: SiteConfig, invite: Invite, *, signs: bool | None) -> GatewayAccess:
    """Return how the site would reach the gateway by an invite.

    Args:
        config: The site's config.
        invite: What the coordinator gave.
        signs: Whether requests are signed in place of a certificate; None keeps it as it is.

    Raises:
        CampaignError: The site does not reach its coordinator through a gateway.
    """
    if config.gateway is None:
        raise CampaignError(
            f"site {config.site!r} uses the store itself, expected one that was invited to a "
            "gateway; write the table [gateway] into site.toml in place of [store] by hand"
        )
    identify = config.gateway.identify
    if signs is not None:
        identify = "token" if signs else "certificate"
    return invite.access().model_copy(update={"identify": identify})


def pinned_pem(home: SiteHome, config: SiteConfig) -> str | None:
    """Return the certificate that the site trusts now; None for a public authority, or no file."""
    pinned = None if config.gateway is None else config.gateway.certificate
    path = None if pinned is None else home.root / pinned
    return None if path is None or not path.exists() else path.read_text(encoding="ascii")


def take_invite(home: SiteHome, config: SiteConfig, invite: Invite, access: GatewayAccess) -> None:
    """Write the invite's certificate and the config's gateway; safe to repeat.

    Args:
        home: The site's folder.
        config: Its config as it is.
        invite: What the coordinator gave, confirmed by the site's operator.
        access: As ``invited_access`` returned it.
    """
    if invite.certificate is not None:
        replace_file(home.root / GATEWAY_CERTIFICATE, invite.certificate.encode("ascii"))
    new = config.model_copy(update={"gateway": access})
    if new != config:
        replace_file(home.config, _changed(home.config, new).encode())


def _changed(path: Path, new: SiteConfig) -> str:
    """Return the config with another gateway and its owner's own lines, where that is possible."""
    table = way_in_text(new) + "\n"
    text = _TABLE.sub(lambda _: table, path.read_text(encoding="utf-8"), count=1)
    try:
        found = checked_config(tomllib.loads(text), source=str(path))
    except (tomllib.TOMLDecodeError, CampaignError):
        return config_text(new)
    return text if found == new else config_text(new)
