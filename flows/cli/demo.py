"""`fedloom demo`: a federation on this machine, from nothing to a registered model.

What the steps do is in `flows/demo.py`; here is their order, and what a person or a program is
shown of them. The servers end with the command, whatever ends it.
"""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.context import HomeOption, JsonOption
from flows.cli.output import console_err, print_json, progress

if TYPE_CHECKING:
    from fl_core.campaign.campaign import Campaign
    from fl_core.rounds.status import CampaignStatus, RoundStatus
    from flows.demo import Baseline
    from flows.local_stack import Stack


def demo(
    home: HomeOption = Path(".fedloom"),
    baselines: Annotated[
        bool, typer.Option(help="Also train each site alone, and all rows pooled.")
    ] = True,
    json_output: JsonOption = False,
) -> None:
    """Run the demo: five sites fine-tune one model on their own work orders, under a budget.

    Starts servers and sites on this machine, runs six rounds, compares, and ends. `fedloom up`
    brings the same pages back.

    Example: `fedloom demo --json > demo.json`
    """
    from flows.local_stack import start, stop
    from flows.processes import ended_with_this_process

    began = time.monotonic()
    try:
        with ended_with_this_process():
            with progress() as bar:
                bar.add_task("starting PostgreSQL, Prefect, MLflow, an S3 server and the gateway")
                stack = start(home, on_progress=bar.console.print)
            document = _run(stack)
            if baselines:
                document["baselines"] = _baselines(document)
            document["seconds"] = round(time.monotonic() - began, 1)
            _tell_where(document, home)
    finally:
        stop(home)
    if json_output:
        print_json(document)


def _run(stack: "Stack") -> dict[str, Any]:
    from flows import demo as steps
    from flows.baselines import CAMPAIGN_FILE
    from flows.cli.campaigns import follow, locked_by_worker
    from flows.local_workers import start_workers

    with progress() as bar:
        bar.add_task("making five sites, enrolling them, starting their workers")
        steps.make_sites(stack)
        steps.admit_sites(stack)
        start_workers(stack)
    text = CAMPAIGN_FILE.read_text(encoding="utf-8")
    with progress() as bar:
        bar.add_task("locking the campaign: names become hashes")
        campaign = locked_by_worker(text)
    steps.approve_at_sites(stack, campaign)
    console_err.print(
        f"campaign {campaign.id}, digest {campaign.digest[:16]}, approved at "
        f"{len(campaign.sites)} sites"
    )
    status = follow(campaign.id, {"campaign": text})
    return _document(status, campaign=campaign, stack=stack)


def _document(status: "CampaignStatus", *, campaign: "Campaign", stack: "Stack") -> dict[str, Any]:
    from tasks.round_log import last_logged
    from tasks.settings import open_store, read_settings

    logged = last_logged(open_store(read_settings()), campaign.id)
    budgets = {site: b for r in status.rounds for site, b in r.budgets.items()}
    return {
        "campaign_id": status.campaign_id,
        "digest": status.digest,
        "rounds": [_round(item) for item in status.rounds],
        "sites": {
            site: {
                "epsilon": budget.epsilon,
                "delta": budget.delta,
                "epsilon_limit": budget.epsilon_limit,
                "rounds_left": budget.rounds_left,
            }
            for site, budget in sorted(budgets.items())
        },
        "baselines": None,
        "model": {
            "name": campaign.model_name,
            "version": None if logged is None else logged.model_version,
            "uri": None if logged is None else logged.model_uri,
        },
        "ui": {
            "prefect": f"{stack.prefect_url}/runs",
            "mlflow": stack.mlflow_url if logged is None else logged.chart_url,
        },
    }


def _round(item: "RoundStatus") -> dict[str, Any]:
    scores = item.evaluation
    return {
        "round": item.round,
        "outcome": "open" if item.outcome is None else item.outcome.status,
        "accuracy": None if scores is None else scores.accuracy,
        "macro_f1": None if scores is None else scores.macro_f1,
        "seconds": item.seconds,
        "bytes_up": item.bytes_up,
        "bytes_down": item.bytes_down,
    }


def _baselines(document: dict[str, Any]) -> dict[str, Any]:
    from flows.baselines import POOLED
    from flows.demo import demo_campaign, run_baselines

    campaign = demo_campaign()
    with progress(counts=True) as bar:
        total = campaign.max_rounds * (len(campaign.sites) + 1)
        task = bar.add_task("comparing: each site alone, all rows pooled", total=total)
        found = run_baselines(lambda _line: bar.advance(task))
    released = [r for r in document["rounds"] if r["accuracy"] is not None]
    together = released[-1] if released else {"accuracy": None, "macro_f1": None}
    table = Table(
        title="benchmark on public rows, outside the ledger",
        caption=_caption(together["accuracy"], found),
    )
    for name in ("trained on", "accuracy", "macro F1", "federation gains"):
        table.add_column(name, justify="left" if name == "trained on" else "right")
    table.add_row("five sites together", *_scores(together), "")
    for name, scores in found.items():
        gain = "" if together["accuracy"] is None else together["accuracy"] - scores.accuracy
        shown = "" if gain == "" else f"{gain:+.3f}"
        label = "all rows pooled" if name == POOLED else f"{name} alone"
        table.add_row(label, f"{scores.accuracy:.3f}", f"{scores.macro_f1:.3f}", shown)
    console_err.print(table)
    return {
        "label": "benchmark on public rows, outside the ledger",
        "local_only": {
            site: {"accuracy": found[site].accuracy, "macro_f1": found[site].macro_f1}
            for site in campaign.sites
        },
        "pooled": {"accuracy": found[POOLED].accuracy, "macro_f1": found[POOLED].macro_f1},
    }


def _caption(together: float | None, found: Mapping[str, "Baseline"]) -> str:
    from flows.baselines import POOLED

    sites = [n for n in found if n != POOLED]
    ahead = [n for n in sites if together is None or found[n].accuracy >= together]
    if not ahead:
        return (
            "same campaign settings and noise, one run each; every site gains. "
            "Pooled rows need one share of noise only, which no site here can have"
        )
    return (
        f"same campaign settings and noise, one run each; no gain over {', '.join(ahead)}: every "
        "site adds noise of its own, so unequal sites train little better than the largest"
    )


def _scores(item: dict[str, Any]) -> list[str]:
    return ["-" if item[k] is None else f"{item[k]:.3f}" for k in ("accuracy", "macro_f1")]


def _tell_where(document: dict[str, Any], home: Path) -> None:
    console_err.print(
        f"done in {document['seconds']:.0f} s. The history is in {home}; "
        f"`fedloom up --detach{_at(home)}` brings these pages back:\n"
        f"  Prefect  {document['ui']['prefect']}\n"
        f"  MLflow   {document['ui']['mlflow']}\n"
        f"{next_commands(document, home)}",
        soft_wrap=True,
        markup=False,
    )


def next_commands(document: dict[str, Any], home: Path) -> str:
    """Return what to look at next, as commands that work as they stand once the stack is up.

    Args:
        document: What the demo prints as JSON.
        home: Folder of its stack.
    """
    campaign, model = document["campaign_id"], document["model"]
    commands = {
        f"fedloom audit {campaign}{_at(home)}": "is the training private? measured, then attacked",
        f"fedloom ledger --site {min(document['sites'], default='SITE')} --verify{_at(home)}": (
            "what a site has spent, every entry checked"
        ),
        f"fedloom plan {campaign} --rounds 6{_at(home)}": "what six more rounds would cost",
    }
    if model["version"] is not None:
        version = f"fedloom statement {model['name']} {model['version']} --verify{_at(home)}"
        commands = {version: "what the last version promises, checked"} | commands
    width = max(map(len, commands))
    return "and then\n" + "\n".join(f"  {c:<{width}}  # {why}" for c, why in commands.items())


def _at(home: Path) -> str:
    return "" if home == Path(".fedloom") else f" --home {shlex.quote(str(home))}"
