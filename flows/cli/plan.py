"""`fedloom plan`: what a campaign will cost every site, before it runs or between its rounds.

Read from what sites have stated in the store and from the campaign's public numbers; without a
store the campaign is shown alone. Nothing is asked of a site, and nothing is charged.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import CampaignError
from flows.cli.cautions import show_warnings
from flows.cli.context import HomeOption, JsonOption, coordinator_environment
from flows.cli.output import console_err, print_json, progress

if TYPE_CHECKING:
    from fl_core.artifacts.store import ObjectStore
    from fl_core.campaign.campaign import Campaign
    from fl_core.privacy.plan_documents import CampaignPlan, TuningCost


def plan(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    file: Annotated[
        str, typer.Argument(help="Campaign file, TOML or YAML, or the id of one in the store.")
    ],
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds to plan; 0 is all that are left of the campaign.")
    ] = 0,
    png: Annotated[Path | None, typer.Option("--png", help="Write the plot to this file.")] = None,
    tuning_runs: Annotated[
        float,
        typer.Option(min=0, help="Also the cost of keeping the best of about so many runs."),
    ] = 0,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Show epsilon after each round at every site, rounds left, and the noise that would fit.

    Example: `fedloom plan my-first.toml --rounds 10 --png plan.png`
    """
    from flows.cli.plan_views import budgets_table, schedule_table, sentences

    store = store_if_any(home)
    campaign = read_planned(file, store)
    made = make_plan(campaign, store, rounds=rounds)
    cost = tuning_cost(campaign, tuning_runs) if tuning_runs else None
    if made.budgets:
        console_err.print(schedule_table(made))
        console_err.print(budgets_table(made))
    for sentence in sentences(made, has_store=store is not None, tuning=cost):
        console_err.print(sentence, markup=False)
    warnings = show_warnings(campaign)
    if png is not None:
        _write_png(png, made)
    if json_output:
        more = {"has_store": store is not None, "tuning": cost and cost.model_dump(mode="json")}
        print_json(made.model_dump(mode="json") | more | {"warnings": warnings})


def store_if_any(home: Path) -> "ObjectStore | None":
    """Return the store that the environment or a running stack of ``home`` names, or None."""
    from tasks.settings import open_store, read_settings

    found = coordinator_environment(home, needed=("s3",))
    return None if found is None else open_store(read_settings(found))


def read_planned(file: str, store: "ObjectStore | None") -> "Campaign":
    """Return the campaign of a file, its noise calibrated; or the frozen one of an id.

    Raises:
        CampaignError: No such file or campaign, or its parts cannot keep its promise.
    """
    from fl_core.assembly import build_parts
    from fl_core.campaign.loading import read_campaign
    from fl_core.privacy.forecast import with_noise
    from fl_core.rounds.plan import read_assembly

    if not Path(file).is_file() and {".", "/"}.isdisjoint(file):
        if store is None:
            raise CampaignError(
                f"{file!r} is no file, and no store is reached that could hold it as an id",
                hint="name a campaign file, or start the stack: `fedloom up --detach`",
            )
        return read_assembly(store, file).campaign
    campaign = with_noise(read_campaign(Path(file)))
    build_parts(campaign)
    return campaign


def make_plan(
    campaign: "Campaign", store: "ObjectStore | None", *, rounds: int = 0
) -> "CampaignPlan":
    """Return the plan of the campaign's next rounds, from what the store holds.

    Raises:
        CampaignError: All rounds are over and no number of further ones was given.
    """
    from fl_core.privacy.planning import plan_campaign
    from fl_core.rounds.budgets import closed_rounds, latest_budgets, latest_federation

    done = 0 if store is None else closed_rounds(store, campaign.id)
    wanted = rounds or campaign.max_rounds - done
    if wanted < 1:
        raise CampaignError(
            f"all {done} rounds of campaign {campaign.id!r} are over",
            hint="more rounds are a new campaign; --rounds says how many it would have",
        )
    with progress() as bar:
        task = bar.add_task("reading what sites have stated")
        return plan_campaign(
            campaign,
            stated={} if store is None else latest_budgets(store, campaign.sites),
            rounds=range(done + 1, done + wanted + 1),
            federation=None if store is None else latest_federation(store),
            on_budget=lambda site: bar.update(task, description=f"budget of {site}"),
        )


def tuning_cost(campaign: "Campaign", mean_runs: float) -> "TuningCost":
    """Return what keeping the best of about ``mean_runs`` runs of the campaign costs.

    Raises:
        PrivacyError: Fewer than one run, or a campaign without a guarantee.
    """
    from fl_core.privacy.tuning import tuning_cost as cost_of

    return cost_of(campaign, mean_runs=mean_runs)


def _write_png(target: Path, made: "CampaignPlan") -> None:
    from tasks.plan_figure import draw_plan

    data = draw_plan(made)
    try:
        target.write_bytes(data)
    except OSError as error:
        raise CampaignError(f"{target}: cannot be written: {error.strerror}") from error
    console_err.print(f"{target} is written", markup=False)
