"""`fedloom simulate`: the same rounds in one process, without a server and without a promise.

For trying a campaign on public rows. Every site gets a fresh ledger that ends with the command,
so what is shown as epsilon holds for nobody, and the output says so.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fl_core.errors import CampaignError
from flows.cli.cautions import show_warnings
from flows.cli.context import JsonOption
from flows.cli.output import console_err, print_json, progress


def simulate(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    file: Annotated[Path, typer.Argument(help="Campaign file, TOML or YAML.")],
    data: Annotated[
        list[str], typer.Option("--data", help="NAME=FILE with a site's rows; once per site.")
    ],
    holdouts: Annotated[
        Path | None, typer.Option(help="Folder of public holdouts.", envvar="FEDLOOM_HOLDOUTS")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Repeat a run exactly; noise is then known to anybody.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of training.")] = 1,
    json_output: JsonOption = False,
) -> None:
    """Run a campaign in this process on files: same rounds, fresh ledgers, no guarantee.

    Example: `fedloom simulate demo.toml --data site-a=a.csv --data site-b=b.csv --holdouts public`
    """
    import torch

    from fl_core.campaign.loading import read_campaign
    from fl_core.simulation import LABEL
    from fl_core.simulation import simulate as run_simulation
    from tasks.locking import shelves_of
    from tasks.round_table import round_row
    from tasks.settings import read_folders
    from tasks.simulation_setting import setting_of

    torch.set_num_threads(threads)
    campaign = read_campaign(file)
    console_err.print(f"{LABEL}: ledgers of their own, which end with this command")
    rounds: list[dict[str, Any]] = []
    with progress(counts=True) as bar:
        task = bar.add_task("loading rows and model", total=campaign.max_rounds)
        folders = read_folders().model_copy(update={"holdouts": holdouts})
        setting = setting_of(campaign, data=pairs(data), shelves=shelves_of(folders), seed=seed)
        warnings = show_warnings(setting.campaign)
        bar.update(task, description="rounds")
        for status in run_simulation(setting):
            rounds.append(status.model_dump(mode="json"))
            bar.advance(task)
            console_err.print("  ".join(round_row(status).values()))
    if json_output:
        document = {"label": LABEL, "campaign_id": campaign.id, "rounds": rounds}
        print_json(document | {"warnings": warnings})


def pairs(given: list[str]) -> dict[str, Path]:
    """Return NAME=FILE options as a mapping.

    Raises:
        CampaignError: Not of that form, or one name twice.
    """
    found: dict[str, Path] = {}
    for item in given:
        name, mark, path = item.partition("=")
        if not mark or not name or not path:
            raise CampaignError(f"--data {item!r} is not of the form NAME=FILE")
        if name in found:
            raise CampaignError(f"--data names site {name!r} twice")
        found[name] = Path(path)
    return found
