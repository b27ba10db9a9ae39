"""`fedloom enrol|revoke|rotate` at the coordinator, `fedloom site rotate|enrolment` at a site.

Who takes part, and under which keys. Nothing here is decided by a program alone: every new key is
shown as a fingerprint that two people compare aloud.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import CampaignError
from flows.cli.context import (
    HomeOption,
    JsonOption,
    SiteHomeOption,
    YesOption,
    use_coordinator,
)
from flows.cli.ledger import ApprovedOption, NeverApprovedOption
from flows.cli.output import console_err, print_json

if TYPE_CHECKING:
    from fl_core.artifacts.store import ObjectStore
    from fl_core.campaign.roster import Roster
    from tasks.enrolment import Enrolment
    from tasks.key_change import KeyChange

ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Its operator confirmed by voice: the site was revoked, its key is lost, or its "
        "declared size is far from the others' or gone.",
    ),
]


def enrol(
    file: Annotated[Path, typer.Argument(help="The enrol.json of a site.")],
    home: HomeOption = Path(".fedloom"),
    replace: ReplaceOption = False,
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Admit a site's public keys at the coordinator, and make its work pool.

    Shows the key's fingerprint, the declared size and what is new, and asks; compare them with the
    site's operator, by voice. A site that a running campaign names joins with the next round.

    Example: `fedloom enrol enrol.json`
    """
    from fl_core.campaign.roster import latest_roster
    from fl_core.updates.signing import fingerprint
    from tasks.enrolment import admit, read_enrolment

    enrolment = read_enrolment(file)
    site, shown = enrolment.site, fingerprint(enrolment.signing_key)
    use_coordinator(home)
    from flows.registration import register
    from tasks.settings import open_store, read_settings

    store = open_store(read_settings())
    said = what_is_new(latest_roster(store), enrolment)
    size = "none" if enrolment.declared_examples is None else f"{enrolment.declared_examples:,}"
    console_err.print(
        f"site {site}, fingerprint {shown}, declared size {size}: {said}", markup=False
    )
    if not yes and not typer.confirm("does its operator read out the same?", err=True):
        raise CampaignError(f"site {site!r} was not enrolled; nothing was changed")
    roster = admit(store, enrolment, is_confirmed=replace)
    register(sites=roster.names())
    console_err.print(f"{site} is in roster {roster.version}", markup=False)
    campaigns = tell_campaigns(store, site)
    if json_output:
        print_json(
            {
                "site": site,
                "roster": roster.version,
                "fingerprint": shown,
                "campaigns": campaigns,
            }
        )


def what_is_new(roster: "Roster", enrolment: "Enrolment") -> str:
    """Say what admitting an enrolment changes, so that two people know what they agree to."""
    history = roster.history(enrolment.site)
    if not history:
        return "a new site"
    known, last = roster.entry(enrolment.site), history[-1]
    if known is None and last.revoked is not None:
        whose = "its last key" if last.signing_key == enrolment.signing_key else "another key"
        return f"was revoked on {last.revoked:%Y-%m-%d}, comes back with {whose}"
    if last.signing_key != enrolment.signing_key:
        return "ANOTHER signing key for an enrolled name; `fedloom rotate` takes a change of keys"
    changed = [
        what
        for what, field in (
            ("certificate", "certificate"),
            ("way to identify", "identify"),
            ("declared size", "declared_examples"),
        )
        if getattr(last, field) != getattr(enrolment, field)
    ]
    if not changed:
        return "enrolled with exactly this already"
    was = "none" if last.declared_examples is None else f"{last.declared_examples:,}"
    before = f"; the declared size was {was}" if "declared size" in changed else ""
    return f"new {' and '.join(changed)} for an enrolled key{before}"


def tell_campaigns(store: "ObjectStore", site: str) -> list[str]:
    """Say which campaigns a site joins with their next round, and return their ids."""
    from tasks.site_states import campaigns_of

    found = campaigns_of(store, site)
    for campaign_id, why in found.unjudged.items():
        said = f"warning: whether {site} joins {campaign_id} cannot be told here: {why}"
        console_err.print(said, markup=False)
    if found.named:
        joined = ", ".join(found.named)
        console_err.print(f"it joins with the next round of: {joined}", markup=False)
    elif found.others:
        console_err.print(
            f"no campaign that goes on names {site} ({', '.join(found.others)}), and the sites of "
            "a campaign are frozen: asking it takes a new campaign, whose `parent` says what it "
            "goes on from",
            markup=False,
        )
    return list(found.named)


def revoke(
    site: Annotated[str, typer.Argument(help="Name of an enrolled site.")],
    home: HomeOption = Path(".fedloom"),
    reason: Annotated[
        str, typer.Option("--reason", help="Why, for the roster; every site can read it.")
    ] = "revoked by the coordinator",
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Withdraw a site's keys: its next write is refused, and within a second everything else.

    What it answered in a round that is still open is left out. Rounds that are closed stay as they
    are, and what it signed for them keeps verifying.

    Example: `fedloom revoke north --reason "laptop stolen"`
    """
    from datetime import UTC, datetime

    from fl_core.campaign.roster import revoke as withdraw
    from fl_core.errors import ServerFailed

    if not yes and not typer.confirm(f"withdraw the keys of {site}?", err=True):
        raise CampaignError(f"site {site!r} was not revoked; nothing was changed")
    # The roster is in the store, so a stolen key is withdrawn without Prefect as well.
    use_coordinator(home, needed=("s3",))
    from flows.site_presence import end_runs
    from tasks.settings import open_store, read_settings

    store = open_store(read_settings())
    roster = withdraw(store, site, now=datetime.now(UTC), reason=reason)
    console_err.print(f"{site} is revoked since roster {roster.version}", markup=False)
    ended: int | None = None
    try:
        ended = end_runs(site)
    except ServerFailed as error:
        # The roster decides; a run that is left over does no harm and ends with its campaign.
        console_err.print(f"warning: its session runs were not ended: {error}", markup=False)
    if json_output:
        print_json({"site": site, "roster": roster.version, "reason": reason, "ended_runs": ended})


def rotate(
    file: Annotated[Path, typer.Argument(help="The rotation.json of a site.")],
    home: HomeOption = Path(".fedloom"),
    replace: ReplaceOption = False,
    yes: YesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Admit an enrolled site's next keys; what the old ones signed keeps verifying.

    The request is signed by the old key, so nobody else can make one. A site that lost its key
    cannot sign: confirm that and the fingerprint with its operator, by voice, and say --replace.

    Example: `fedloom rotate rotation.json`
    """
    from fl_core.updates.signing import fingerprint
    from tasks.key_change import admit_change, read_change

    change = read_change(file)
    shown = fingerprint(change.new_key)
    tell_change(change)
    if not yes and not typer.confirm("does its operator read out the same?", err=True):
        raise CampaignError(f"keys of {change.site!r} were not changed")
    use_coordinator(home, needed=("s3",))
    from tasks.settings import open_store, read_settings

    roster = admit_change(open_store(read_settings()), change, is_confirmed=replace)
    console_err.print(
        f"the next keys of {change.site} are in roster {roster.version}; "
        "its operator now runs `fedloom site rotate --finish`",
        markup=False,
    )
    if json_output:
        print_json({"site": change.site, "roster": roster.version, "fingerprint": shown})


def tell_change(change: "KeyChange") -> None:
    """Show what a site's next keys are, and who vouches for them."""
    from fl_core.updates.signing import fingerprint

    if change.new_key == change.old_key:
        what = "keeps its signing key and changes its certificate"
    elif change.is_of_lost_key:
        what = "LOST its signing key; nobody but its operator can vouch for the next one"
    else:
        what = f"changes its signing key, signed by {fingerprint(change.old_key)}"
    console_err.print(
        f"site {change.site} {what}\nfingerprint {fingerprint(change.new_key)}", markup=False
    )


def site_rotate(  # noqa: PLR0913  one parameter per option of the command
    *,
    home: SiteHomeOption = Path("site"),
    certificate_only: Annotated[
        bool, typer.Option("--certificate-only", help="Keep the signing key.")
    ] = False,
    lost_key: Annotated[
        bool, typer.Option("--lost-key", help="The signing key is lost; a new one takes over.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="The coordinator has admitted the next keys.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Take back a request that is not admitted.")
    ] = False,
    approved: ApprovedOption = None,
    never_approved: NeverApprovedOption = None,
    json_output: JsonOption = False,
) -> None:
    """Change the site's keys: first a request, then --finish when the coordinator has admitted it.

    The privacy ledger goes on under the next key, and what was spent stays spent, also where the
    old key is lost. The site works with its old keys until --finish; run that between two rounds,
    because a round that is being trained is answered under the key of its plan.

    Example: `fedloom site rotate --home /srv/fedloom`
    """
    from fl_core.rounds.site_recovery import Agreed
    from fl_core.updates.signing import fingerprint
    from tasks.gateway_access import ROTATION
    from tasks.key_change import abandon_change, begin_change, finish_change
    from tasks.site_config import SiteHome, read_site_config

    own = SiteHome(home.resolve())
    config = read_site_config(own)
    if finish:
        said = Agreed(approved=frozenset(approved or ()), never=frozenset(never_approved or ()))
        change = finish_change(own, config, said=said, is_lost=lost_key)
        console_err.print(f"{change.site} has its next keys; the old ones are gone", markup=False)
    elif abandon:
        change = abandon_change(own, config)
        console_err.print(f"{change.site} keeps the keys it has", markup=False)
    else:
        change = begin_change(own, config, only_certificate=certificate_only, is_lost=lost_key)
        tell_change(change)
        console_err.print(
            f"next: give {own.root / ROTATION} to the coordinator, who runs `fedloom rotate`, "
            f"then fedloom site rotate --finish --home {own.root}",
            markup=False,
        )
    if json_output:
        state = "finished" if finish else "abandoned" if abandon else "requested"
        shown = fingerprint(change.new_key)
        print_json({"site": change.site, "state": state, "fingerprint": shown})


def site_enrolment(
    home: SiteHomeOption = Path("site"),
    json_output: JsonOption = False,
) -> None:
    """Show the fingerprint to read out, and write enrol.json again from the keys that are here.

    Example: `fedloom site enrolment --home /srv/fedloom`
    """
    from fl_core.updates.signing import fingerprint, read_key
    from tasks.enrolment import read_own_enrolment, write_enrolment
    from tasks.site_config import SiteHome, read_site_config

    own = SiteHome(home.resolve())
    config = read_site_config(own)
    declared = read_own_enrolment(own).declared_examples if own.enrolment.exists() else None
    enrolment = write_enrolment(own, config, key=read_key(own.key), declared_examples=declared)
    shown = fingerprint(enrolment.signing_key)
    console_err.print(
        f"site {config.site}, fingerprint {shown}\nwritten: {own.enrolment}", markup=False
    )
    if json_output:
        print_json({"site": config.site, "fingerprint": shown, "file": str(own.enrolment)})
