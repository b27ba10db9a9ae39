"""`fedloom site gateway`: take a new invite at a site that is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import CampaignError
from flows.cli.context import JsonOption, SiteHomeOption, YesOption
from flows.cli.output import console_err, print_json

if TYPE_CHECKING:
    from tasks.gateway_access import GatewayAccess


def site_gateway(
    invite: Annotated[
        Path, typer.Option(help="The invite.json that the coordinator gave: address, certificate.")
    ],
    home: SiteHomeOption = Path("site"),
    sign_requests: Annotated[
        bool | None,
        typer.Option(
            "--sign-requests/--show-certificate",
            help="Sign every request, for a proxy that ends TLS, or show the certificate; left "
            "out, as before.",
        ),
    ] = None,
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Take a new invite: the gateway has another address or certificate.

    Shows the old and the new fingerprint, and asks; compare the new one with the coordinator's
    operator, by voice, because whoever made the invite is trusted from then on. Keys, ledger and
    policy stay; a worker that runs is started again afterwards.

    Example: `fedloom site gateway --invite invite.json --home /srv/fedloom`
    """
    from flows.gateway.files import fingerprint_of
    from tasks.invite import Invite, read_invite
    from tasks.new_invite import invited_access, pinned_pem, take_invite
    from tasks.site_config import SiteHome, read_site_config

    own = SiteHome(home.resolve())
    config, given = read_site_config(own), read_invite(invite)
    access = invited_access(config, given, signs=sign_requests)
    before, pinned = config.gateway or access, pinned_pem(own, config)
    is_pinned = pinned is not None or before.certificate is None
    old = fingerprint_of(Invite(url=before.url, certificate=pinned)) if is_pinned else "absent"
    new = fingerprint_of(given)
    _show("before", before, old)
    _show("by the invite", access, new)
    is_same = before == access and pinned == given.certificate
    if is_same:
        console_err.print("nothing to change")
    else:
        _require_yes(config.site, yes=yes)
        take_invite(own, config, given, access)
        console_err.print(f"taken: {own.config}; start the site's worker again", markup=False)
        if before.identify != access.identify:
            console_err.print(
                "how the site shows who it is has changed: run `fedloom site enrolment` and give "
                "enrol.json to the coordinator again",
                markup=False,
            )
    if json_output:
        print_json(
            {
                "site": config.site,
                "changed": not is_same,
                "url": access.url,
                "identify": access.identify,
                "certificate_sha256": new,
                "certificate_sha256_before": old,
            }
        )


def _show(when: str, access: "GatewayAccess", fingerprint: str) -> None:
    console_err.print(
        f"{when}: {access.url}, identify {access.identify}\n  certificate sha-256 {fingerprint}",
        markup=False,
        soft_wrap=True,
    )


def _require_yes(site: str, *, yes: bool) -> None:
    question = "does the coordinator's operator read out the same new fingerprint?"
    if not yes and not typer.confirm(question, err=True):
        raise CampaignError(f"site {site!r} keeps its gateway; nothing was changed")
