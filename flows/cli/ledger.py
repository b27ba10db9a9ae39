"""`fedloom ledger` and `fedloom ledger recover`: what a site's data were charged with.

Both run at the site, over its own folder; a local stack's folder stands for all of its sites.
"""

from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import LedgerCorrupt
from flows.cli.context import JsonOption
from flows.cli.output import console_err, print_json

SiteOption = Annotated[str, typer.Option("--site", help="Site of a local stack; empty is all.")]
LedgerHomeOption = Annotated[
    Path,
    typer.Option(
        "--home", help="The site's own folder, or a local stack's.", envvar="FEDLOOM_HOME"
    ),
]


def ledger(  # noqa: PLR0913  one parameter per option of the command
    context: typer.Context,
    *,
    site: SiteOption = "",
    home: LedgerHomeOption = Path(".fedloom"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check chain, signatures and witnesses.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Show what a site's data have been charged with, entry by entry.

    With `--verify` every entry is checked and compared with what the site's witnesses hold. A
    ledger that was changed, reordered, forked, cut off or rolled back ends with exit code 1 and
    the first entry that does not hold.

    Example: `fedloom ledger --site site-a --verify`
    """
    if context.invoked_subcommand is not None:
        return
    from flows.cli.ledger_views import ledger_documents, ledger_table, site_homes

    documents = [
        document
        for own in site_homes(home, site)
        for document in ledger_documents(own, verify=verify)
    ]
    for document in documents:
        console_err.print(ledger_table(document))
    if json_output:
        print_json({"ledgers": documents})
    broken = [document for document in documents if document["broken"]]
    if broken:
        raise LedgerCorrupt(
            f"ledger of {broken[0]['dataset']}, unit {broken[0]['unit']}: {broken[0]['broken']}",
            hint="stop the site, keep the folder as it is, find out what was restored or changed, "
            "then run `fedloom ledger recover`",
        )


ApprovedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--approved", metavar="ID", help="A campaign whose approval may have been lost too; repeat."
    ),
]
NeverApprovedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--never-approved", metavar="ID", help="A campaign that was never approved here; repeat."
    ),
]


def ledger_recover(  # noqa: PLR0913  one parameter per option of the command
    *,
    site: SiteOption = "",
    home: LedgerHomeOption = Path(".fedloom"),
    assume_lost: Annotated[
        bool,
        typer.Option(
            "--assume-lost",
            help="Go on without witnesses that are lost for good, and charge every plan.",
        ),
    ] = False,
    approved: ApprovedOption = None,
    never_approved: NeverApprovedOption = None,
    json_output: JsonOption = False,
) -> None:
    """Put a site's ledger together again after a restore.

    Takes back the entries that witnesses hold. What nobody holds is charged as every plan that
    names the site; what was trained since is never trained again. Stop the site before. Campaigns
    that nothing here shows to be approved are named, and charged or not as you say.

    Example: `fedloom ledger recover --home /srv/fedloom`
    """
    from dataclasses import asdict

    from fl_core.rounds.site_recovery import Agreed
    from flows.cli.ledger_views import site_homes
    from tasks.ledger_recovery import recover_ledgers
    from tasks.site_config import read_site_config

    done = []
    said = Agreed(approved=frozenset(approved or ()), never=frozenset(never_approved or ()))
    for own in site_homes(home, site):
        config = read_site_config(own)
        for recovered in recover_ledgers(own, config, assume_lost=assume_lost, said=said):
            aside = None if recovered.set_aside is None else str(recovered.set_aside)
            done.append({"site": config.site, **asdict(recovered), "set_aside": aside})
            console_err.print(
                f"{config.site}, unit {recovered.unit}: {len(recovered.imported)} entries came "
                f"back, {len(recovered.replaced)} were replaced, {len(recovered.charged)} rounds "
                "were charged because nobody can tell",
                markup=False,
            )
            if aside is not None:
                console_err.print(f"the old ledger is kept in {aside}", markup=False)
    if json_output:
        print_json({"ledgers": done})
