"""`fedloom site init|start|approve|witness`, `evaluation start`.

What a site's operator does at the site, and the worker with the public holdout.
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
from flows.cli.output import console_err, print_json
from flows.cli.site_options import (
    BoundOption,
    DataOption,
    DatasetOption,
    DeclaredOption,
    DeltaOption,
    EndpointOption,
    EpsilonOption,
    GatewayOption,
    NewRowsOption,
    PrefectOption,
    SiteArgument,
    StoreOption,
    TokenOption,
    UnitOption,
    WitnessOption,
)

if TYPE_CHECKING:
    from fl_core.privacy.policy_documents import SitePolicy
    from tasks.invite import Invite
    from tasks.site_config import SiteConfig, SiteHome


def site_init(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    site: SiteArgument,
    data: DataOption,
    epsilon: EpsilonOption,
    delta: DeltaOption,
    home: SiteHomeOption = Path("site"),
    gateway: GatewayOption = None,
    sign_requests: TokenOption = False,
    prefect_api_url: PrefectOption = "http://127.0.0.1:4200/api",
    store: StoreOption = "",
    endpoint: EndpointOption = "",
    declared_examples: DeclaredOption = None,
    witness: WitnessOption = None,
    unit: UnitOption = "row",
    max_rows_per_unit: BoundOption = 1,
    dataset: DatasetOption = "",
    new_rows: NewRowsOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make a site: keys, config, policy and the privacy ledger's first entry.

    One folder is one dataset. A ledger is never made a second time for the same rows: where a
    witness knows one, restore the folder and run `fedloom ledger recover`.

    Example: `fedloom site init north --gateway invite.json --data rows.csv --epsilon 8 --delta 1e-5
    --home /srv/fedloom --witness /mnt/other-disk/fedloom-witness`
    """
    from fl_core.data.units import count_units, require_unit
    from fl_core.privacy.policy_documents import CoordinatorWitness
    from fl_core.privacy.policy_template import counting_units, policy_text
    from fl_core.updates.signing import fingerprint
    from tasks.enrolment import NewSite, make_site, require_no_site
    from tasks.invite import accept_invite, read_invite
    from tasks.site_config import SiteHome, checked_config
    from tasks.site_rows import read_rows
    from tasks.witnesses import parse_witness

    rows = read_rows(data)
    require_unit(rows, unit, max_rows_per_unit)
    warn_of_delta(delta, n_units=count_units(rows, unit))
    own = SiteHome(home)
    invite = None if gateway is None else read_invite(gateway)
    way_in = (
        _direct(prefect_api_url, store, endpoint)
        if invite is None
        else _through(invite, sign_requests=sign_requests)
    )
    plain = {"site": site, "data": data.resolve(), **way_in}
    config = checked_config(plain, source=str(own.config))
    if invite is not None:
        require_no_site(own)
        accept_invite(invite, own.root)
    witnesses = (CoordinatorWitness(), *(parse_witness(text) for text in witness or ()))
    text = policy_text(epsilon=epsilon, delta=delta, witnesses=dict.fromkeys(witnesses))
    new = NewSite(
        config,
        counting_units(text, unit, max_rows_per_unit),
        declared_examples,
        dataset or None,
        new_rows,
    )
    enrolment = make_site(own, new)
    show_witnesses(own)
    shown = fingerprint(enrolment.signing_key)
    tell_next_steps(own, config, shown=shown)
    if json_output:
        print_json({"site": site, "home": str(home), "fingerprint": shown})


def _through(invite: "Invite", *, sign_requests: bool) -> dict[str, object]:
    from flows.gateway.files import fingerprint_of

    console_err.print(
        f"gateway {invite.url}\ncertificate sha-256 {fingerprint_of(invite)}\n"
        "compare it with the coordinator's operator, who sees it by `fedloom gateway show`",
        markup=False,
    )
    identify = "token" if sign_requests else "certificate"
    return {"gateway": invite.access().model_dump() | {"identify": identify}}


def _direct(prefect_api_url: str, store: str, endpoint: str) -> dict[str, object]:
    from tasks.site_config import CREDENTIALS

    if not store:
        raise CampaignError(
            "no way to the coordinator is stated, expected --gateway with the invite.json that "
            "the coordinator gave; a site on the coordinator's own machine may have --store instead"
        )
    reached = {"url": store, "endpoint": endpoint or None, "credentials_file": CREDENTIALS}
    return {"prefect_api_url": prefect_api_url, "store": reached}


def tell_next_steps(home: "SiteHome", config: "SiteConfig", *, shown: str) -> None:
    """Say what stands between a site that was made and its first session."""
    from tasks.site_config import CREDENTIALS

    keys = "" if config.gateway else f"write the store's keys into {home.root / CREDENTIALS}, "
    console_err.print(
        f"site {config.site} is made in {home.root}; fingerprint {shown}\n"
        f"next: {keys}read {home.policy}, "
        f"give {home.enrolment} to the coordinator, then fedloom site start --home {home.root}"
    )


def warn_of_delta(delta: float, *, n_units: int) -> None:
    """Say so where publishing one unit by chance would keep the policy's promise."""
    if delta * n_units >= 1:
        console_err.print(
            f"warning: delta {delta:g} is not below one over the rows or people of this file; "
            "publishing one of them by chance would keep such a promise; state a smaller delta "
            "in policy.toml before the first round"
        )


def site_witness(
    home: SiteHomeOption = Path("site"),
    json_output: JsonOption = False,
) -> None:
    """Prepare the folders that the policy names as witnesses, and ask every witness.

    Run it after a change of `[[witness]]` in policy.toml and after a disk was mounted. A folder
    counts only while it holds the mark that this command puts there.

    Example: `fedloom site witness --home /srv/fedloom`
    """
    from tasks.site_config import SiteHome

    reports = show_witnesses(SiteHome(home))
    if json_output:
        print_json({"witnesses": reports})


def show_witnesses(home: "SiteHome") -> list[dict[str, object]]:
    """Prepare and show the witnesses of a site, and warn where they show too little."""
    from dataclasses import asdict

    from tasks.site_config import read_site_config, site_policy, surroundings
    from tasks.witnesses import prepare_witnesses

    config, policy = read_site_config(home), site_policy(home)
    reports = prepare_witnesses(policy, surroundings(home, config), site=config.site)
    for report in reports:
        held = "does not answer" if report.entries is None else f"holds {report.entries} entries"
        console_err.print(f"witness {report.name}: {held}", markup=False)
        if report.complaint:
            console_err.print(f"  warning: {report.complaint}", markup=False)
    warn_of_witnesses(policy)
    return [asdict(report) for report in reports]


def warn_of_witnesses(policy: "SitePolicy") -> None:
    """Say so where witnesses are too few, or say what the policy withholds."""
    from fl_core.errors import PolicyRefused
    from fl_core.privacy.witness import require_enough_witnesses

    if policy.budget_statement == "withheld" and not all(w.is_own for w in policy.witnesses):
        console_err.print(
            "warning: budget_statement is withheld, and the coordinator's copies of the ledger "
            "say the same; name two witnesses of your own instead"
        )
    try:
        require_enough_witnesses([witness.is_own for witness in policy.witnesses])
    except PolicyRefused as error:
        console_err.print(f"warning: {error}; {error.hint}", markup=False)


def site_start(home: SiteHomeOption = Path("site")) -> None:
    """Serve the site: poll for sessions, train in a child process, send signed updates.

    Only outgoing connections are made; Ctrl-C ends it.

    Example: `fedloom site start --home /srv/fedloom`
    """
    from tasks.site_config import SiteHome, read_site_config

    own = SiteHome(home.resolve())
    config = read_site_config(own)
    require_ready(own)
    from flows.serve_site import serve_site

    serve_site(own, config)


def require_ready(home: "SiteHome") -> None:
    """Check what only the site can know, before anything runs.

    Raises:
        CampaignError: Config, policy or rows cannot be used.
        LedgerCorrupt: There is no ledger, or it does not hold.
    """
    from fl_core.data.rows import require_rows
    from tasks.rows_fit import approved_campaigns, require_rows_fit
    from tasks.site_config import open_site, read_site_config
    from tasks.site_rows import read_rows

    config = read_site_config(home)
    site = open_site(home, config)
    # Reading the head checks the whole chain.
    site.ledger.head()
    warn_of_witnesses(site.policy)
    require_rows(read_rows(home.root / config.data))
    for campaign in approved_campaigns(home, config):
        require_rows_fit(home, config, campaign=campaign)


def site_approve(
    campaign: Annotated[
        str, typer.Argument(help="Id of a campaign; or, without --round, a locked file.")
    ],
    home: SiteHomeOption = Path("site"),
    yes: YesOption = False,
    json_output: JsonOption = False,
    round_number: Annotated[
        int | None, typer.Option("--round", min=1, help="Let go what this round holds ready.")
    ] = None,
) -> None:
    """Pin a campaign in the site's policy, after showing what it asks of the site.

    With `--round N`, where the policy says `hold = true`: show exactly what round N would send,
    and let it leave.

    Example: `fedloom site approve my-first --home /srv/fedloom`
    """
    from datetime import UTC, datetime

    from fl_core.campaign.loading import read_campaign
    from fl_core.privacy.forecast import schedule
    from fl_core.privacy.policy import approve
    from fl_core.rounds.plan import read_assembly
    from flows.cli.decisions import approve_round
    from flows.cli.views import schedule_table
    from tasks.rows_fit import require_rows_fit
    from tasks.settings import open_store
    from tasks.site_config import SiteHome, read_site_config, site_policy, site_settings

    own = SiteHome(home.resolve())
    config = read_site_config(own)
    if round_number is not None:
        approve_round(own, campaign, round_number, yes=yes, json_output=json_output)
        return
    path = Path(campaign)
    asked = (
        read_campaign(path)
        if path.is_file()
        else read_assembly(open_store(site_settings(own, config)), campaign).campaign
    )
    require_rows_fit(own, config, campaign=asked)
    console_err.print(schedule_table(asked, schedule(asked)))
    names = f"base model {asked.base_model.name}, gate {asked.gate.name}"
    console_err.print(names, markup=False)
    console_err.print(f"digest {asked.digest}")
    if not yes and not typer.confirm("may this campaign use the site's data?", err=True):
        raise CampaignError(f"campaign {asked.id!r} was not approved; nothing was changed")
    approve(own.store("approvals"), asked, now=datetime.now(UTC))
    console_err.print(f"approved: {asked.id}")
    if asked.privacy.none is None:
        warn_of_witnesses(site_policy(own))
    if json_output:
        print_json({"campaign": asked.id, "digest": asked.digest, "site": config.site})


def evaluation_start(home: HomeOption = Path(".fedloom")) -> None:
    """Serve evaluations: the worker with base model and public holdout.

    Example: `fedloom evaluation start`
    """
    use_coordinator(home)
    from flows.prefect_names import EVALUATE_RELEASE, EVALUATION_POOL, LOCK_CAMPAIGN
    from flows.site_worker import run_worker

    run_worker(
        pool=EVALUATION_POOL,
        allowed={
            EVALUATE_RELEASE: "flows.evaluate_release.evaluate_release",
            LOCK_CAMPAIGN: "flows.lock_campaign.lock_campaign",
        },
        preload="flows.evaluate_release.preload",
        name="evaluation",
        api_logging=True,
    )
