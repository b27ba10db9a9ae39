"""`fedloom site outbox`, `pause`, `resume`, `refuse`, `leave`: what an operator sees and decides.

All of them work on the site's own folder and need no network. What is decided takes effect at the
next step of a session that is running.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fl_core.errors import CampaignError
from flows.cli.context import JsonOption, SiteHomeOption, YesOption
from flows.cli.output import console_err, print_json

if TYPE_CHECKING:
    from fl_core.rounds.site_decision import SiteDecision
    from tasks.site_config import SiteHome

CampaignArgument = Annotated[
    str, typer.Argument(help="Id of the campaign, or first digits of its digest.")
]
WhyOption = Annotated[str, typer.Option(help="Why, in your own words; stays at the site.")]


def site_outbox(
    home: SiteHomeOption = Path("site"),
    last: Annotated[
        int, typer.Option(min=0, help="Rounds and requests to show, the newest; 0 shows all.")
    ] = 20,
    page: Annotated[
        Path | None, typer.Option(help="Write it as a page to this file, for a browser.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show what left this site, what is ready to leave, and what was decided.

    Every round with its files, signed manifest and charge, and every request with its bytes. All
    of it is read from the site's folder, without the network.

    Example: `fedloom site outbox --home /srv/fedloom --page outbox.html`
    """
    from datetime import UTC, datetime

    from flows.cli.outbox_views import outbox_tables
    from tasks.outbox_page import to_page
    from tasks.outbox_view import read_outbox
    from tasks.site_config import SiteHome

    view = read_outbox(SiteHome(home), most=last or None)
    if page is not None:
        page.write_text(to_page(view, made=datetime.now(UTC)), encoding="utf-8")
        console_err.print(f"written: {page}", markup=False)
    else:
        for part in outbox_tables(view):
            # Text as it is: a command among it is copied as one line.
            console_err.print(part, soft_wrap=isinstance(part, Text))
    if json_output:
        print_json({"outbox": view.model_dump(mode="json")})


def site_pause(
    home: SiteHomeOption = Path("site"), why: WhyOption = "", json_output: JsonOption = False
) -> None:
    """Take part in no new round until `fedloom site resume`.

    Rounds are declined before anything is charged. A round whose training has begun is finished.

    Example: `fedloom site pause --home /srv/fedloom --why "backup until noon"`
    """
    from tasks.site_decisions import pause

    own = _opened(home)
    _say(own, pause(own, why=why), "paused: no new round is taken part in", json_output=json_output)


def site_resume(
    home: SiteHomeOption = Path("site"), why: WhyOption = "", json_output: JsonOption = False
) -> None:
    """Take part in new rounds again after `fedloom site pause`.

    Example: `fedloom site resume --home /srv/fedloom`
    """
    from tasks.site_decisions import resume

    own = _opened(home)
    _say(own, resume(own, why=why), "resumed: the next round is joined", json_output=json_output)


def site_refuse(  # noqa: PLR0913  one parameter per option of the command
    campaign: CampaignArgument,
    round_number: Annotated[
        int | None, typer.Option("--round", min=1, help="Only this round; left out, all of them.")
    ] = None,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Take this refusal back.")] = False,
    home: SiteHomeOption = Path("site"),
    why: WhyOption = "",
    json_output: JsonOption = False,
) -> None:
    """Refuse a campaign, or one of its rounds.

    A round that was not begun is declined with the reason `policy` before anything is charged. One
    whose training has begun stays charged, and nothing of it leaves, not even a refusal.

    Example: `fedloom site refuse my-first --round 3 --home /srv/fedloom`
    """
    from tasks.site_decisions import allow, find_campaign, refuse

    own = _opened(home)
    found = find_campaign(own, campaign)
    what = found.name if round_number is None else f"round {round_number} of {found.name}"
    act = allow if undo else refuse
    made = act(own, found, round_number=round_number, why=why)
    _say(own, made, f"{'taken back' if undo else 'refused'}: {what}", json_output=json_output)


def site_leave(
    campaign: CampaignArgument,
    home: SiteHomeOption = Path("site"),
    why: WhyOption = "",
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Leave a campaign for good.

    Its next plan is answered with a signed farewell, and the coordinator asks no more. What is in
    the outbox of it stays there. The ledger is kept: what was spent on the data stays spent.

    Example: `fedloom site leave my-first --home /srv/fedloom`
    """
    from tasks.site_decisions import find_campaign, leave

    own = _opened(home)
    found = find_campaign(own, campaign)
    if not yes and not typer.confirm(f"leave {found.name} for good?", err=True):
        raise CampaignError(f"campaign {found.name!r} was not left; nothing was changed")
    _say(own, leave(own, found, why=why), f"left: {found.name}", json_output=json_output)


def approve_round(
    home: "SiteHome", campaign: str, round_number: int, *, yes: bool, json_output: bool
) -> None:
    """Show exactly what a held round would send, ask, and let those bytes go."""
    from flows.cli.outbox_views import exchange_lines
    from tasks.outbox_view import read_exchange
    from tasks.site_decisions import approve_round as approve
    from tasks.site_decisions import find_campaign, require_held

    found = find_campaign(home, campaign)
    require_held(home, found, round_number)
    one = read_exchange(home, found.digest, round_number)
    for line in exchange_lines(one):
        console_err.print(line, markup=False, soft_wrap=True)
    if not yes and not typer.confirm("may exactly this leave the site?", err=True):
        raise CampaignError(f"round {round_number} of {found.name!r} is still held")
    made = approve(home, found, round_number)
    text = f"approved: round {round_number} of {found.name}"
    _say(home, made, text, json_output=json_output)


def _opened(home: Path) -> "SiteHome":
    from tasks.site_config import SiteHome, read_site_config

    own = SiteHome(home.resolve())
    # Before anything is written, so that a wrong folder gets no decision.
    read_site_config(own)
    return own


def _say(home: "SiteHome", made: "SiteDecision", text: str, *, json_output: bool) -> None:
    console_err.print(text, markup=False)
    if json_output:
        document: dict[str, Any] = made.model_dump(mode="json", exclude_none=True)
        print_json({"home": str(home.root), "decision": document})
