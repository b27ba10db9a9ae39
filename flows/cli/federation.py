"""`fedloom federation init|show`: the ledger that the coordinator charges for its own noise.

Needed for campaigns with `privacy.client` and mechanism "gaussian" only. A local stack has one
from its first start.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json


def federation_init(
    epsilon: Annotated[
        float, typer.Option(min=0, help="Limit for a whole site over all campaigns, ever.")
    ],
    delta: Annotated[
        float, typer.Option(min=0, max=1, help="Probability outside it; below one over the sites.")
    ],
    folder: Annotated[
        Path, typer.Option(help="Folder of the coordinator for limits and key.")
    ] = Path("federation"),
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Make the federation's ledger: limits and key in a folder, the first entry in the store.

    Example: `fedloom federation init --epsilon 8 --delta 1e-3 --folder /srv/fedloom/federation`
    """
    from fl_core.updates.signing import fingerprint
    from tasks.federation import FederationHome, checked_limits, make_federation
    from tasks.settings import open_store, read_settings

    limits = checked_limits(epsilon=epsilon, delta=delta)
    use_coordinator(home, needed=("s3",))
    own = FederationHome(folder.resolve())
    made = make_federation(own, limits=limits, store=open_store(read_settings()))
    shown = fingerprint(made.ledger.public_key)
    console_err.print(
        f"the federation's ledger is made; fingerprint {shown}\n"
        f"next: set FEDLOOM_FEDERATION={own.root} for the coordinator's processes"
    )
    if json_output:
        print_json({"folder": str(own.root), "fingerprint": shown})


def federation_show(home: HomeOption = Path(".fedloom"), json_output: JsonOption = False) -> None:
    """Show what whole sites have spent under the coordinator's noise, every entry checked.

    Example: `fedloom federation show --json`
    """
    from tasks.federation import federation_document
    from tasks.settings import open_store, read_settings

    use_coordinator(home, needed=("s3",))
    settings = read_settings()
    document = federation_document(settings, open_store(settings))
    console_err.print(_table(document))
    if json_output:
        print_json(document)


def _table(document: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    spent, limit = document["epsilon"], document["epsilon_limit"]
    table = Table(
        title="the federation's ledger: whole sites, all campaigns of this store",
        caption=Text(
            f"epsilon {spent:.2f} of {limit:g} at delta {document['delta']:g}, by gdp; "
            f"key {document['fingerprint']}"
        ),
    )
    for name in ("seq", "kind", "round", "noise multiplier", "campaign", "time"):
        table.add_column(name, justify="right" if name in {"seq", "round"} else "left")
    for entry in document["entries"]:
        event = entry.get("event") or {}
        cells = (
            entry["seq"],
            entry["kind"],
            entry.get("round", "-"),
            event.get("noise_multiplier", "-"),
            entry.get("campaign_digest", "-")[:16],
            entry["time"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table
