"""`fedloom site readout`: what noise did to this site's updates, shown at the site only."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from flows.cli.context import JsonOption, SiteHomeOption
from flows.cli.output import console_err, print_json

if TYPE_CHECKING:
    from tasks.read_outs import RoundReadOut

PERCENT = 100


def site_readout(
    home: SiteHomeOption = Path("site"),
    site: Annotated[str, typer.Option("--site", help="Site of a local stack, with its home.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Show how much of this site's signal survived the noise, round by round.

    The figures come from private rows without noise: keep them at the site.

    Example: `fedloom site readout --home /srv/fedloom`
    """
    from flows.cli.ledger_views import site_homes
    from tasks.read_outs import read_outs

    documents = []
    for own in site_homes(home, site):
        found = read_outs(own)
        name = own.root.name
        console_err.print(readout_table(name, found))
        for one in latest(found):
            said = f"{one.campaign}, round {one.figures.round}: {one.meaning}"
            console_err.print(said, markup=False)
        documents.append({"site": name, "rounds": [plain(one) for one in found]})
    if json_output:
        print_json({"readouts": documents})


def plain(one: "RoundReadOut") -> dict[str, Any]:
    """Return a read-out as plain values, with what it means."""
    return {
        "campaign": one.campaign,
        "digest": one.digest,
        **one.figures.model_dump(mode="json"),
        "is_lost": one.is_lost,
        "signal": one.signal,
        "meaning": one.meaning,
    }


def latest(found: "list[RoundReadOut]") -> "list[RoundReadOut]":
    """Return the last round of every campaign: what there is still something to do about."""
    return list({one.digest: one for one in found}.values())


def readout_table(site: str, found: "list[RoundReadOut]") -> Table:
    """Return a site's read-outs as a table, oldest round first."""
    table = Table(
        title=f"what noise did to the updates of {site}",
        caption="not for anybody outside this site",
        box=box.SIMPLE_HEAD,
    )
    for name in ("campaign", "round", "cosine", "norm ratio", "clipped", "signal"):
        table.add_column(name, justify="left" if name in {"campaign", "signal"} else "right")
    for one in found:
        figures = one.figures
        table.add_row(
            one.campaign,
            str(figures.round),
            f"{figures.cosine:.2f}",
            "-" if figures.norm_ratio is None else f"{figures.norm_ratio:.1f}",
            "-" if figures.clipped_share is None else f"{PERCENT * figures.clipped_share:.0f}%",
            one.signal + (" !" if one.is_lost else ""),
            style="yellow" if one.is_lost else None,
        )
    return table
