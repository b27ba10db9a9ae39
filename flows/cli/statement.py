"""`fedloom statement`: the privacy statement of a model version, made from the store, and checked.

The page is made from what sites and coordinator signed, not from what was logged; with ``--verify``
all of that is checked first, and what was logged is held against it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import CampaignError
from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json, progress

if TYPE_CHECKING:
    from fl_core.artifacts.store import ObjectStore
    from fl_core.assembly import Assembly
    from fl_core.rounds.statement_check import Verification
    from tasks.tracking_read import LoggedVersion


def statement(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    model: Annotated[str, typer.Argument(help="Registered model in MLflow.")] = "",
    version: Annotated[str, typer.Argument(help="Its version, or alias such as candidate.")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check all that it is made from, and what was logged.")
    ] = False,
    campaign: Annotated[
        str, typer.Option("--campaign", help="Campaign id, in place of a model; needs no MLflow.")
    ] = "",
    round_number: Annotated[
        int, typer.Option("--round", min=0, help="Round that released it, with --campaign.")
    ] = 0,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the page to this file.")
    ] = None,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Show what a model version promises, to whom, and check it against everything signed.

    Example: `fedloom statement excavators 3 --verify`
    """
    from rich.markdown import Markdown

    from fl_core.privacy.statement_text import to_markdown
    from fl_core.rounds.plan import read_assembly
    from fl_core.rounds.version_statement import version_statement
    from tasks.settings import open_store, read_settings

    use_coordinator(home, needed=("s3",) if campaign else ("s3", "mlflow"))
    store = open_store(read_settings())
    logged = None if campaign else _logged(model, version)
    campaign_id, number = _named(campaign, round_number, logged)
    assembly = read_assembly(store, campaign_id)
    verified = _verified(assembly, store, number, logged=logged) if verify else None
    if verified is None or verified.broken is None:
        made = version_statement(assembly, store, number)
        console_err.print(Markdown(to_markdown(made)))
        if html is not None:
            _write_page(html, made)
        document: dict[str, Any] = {"statement": made.model_dump(mode="json")}
    else:
        document = {"statement": None}
    if verified is not None:
        _show(verified)
        document["verification"] = verified.model_dump(mode="json")
    if json_output:
        print_json(document)
    if verified is not None and verified.broken is not None:
        raise typer.Exit(1)


def _logged(model: str, version: str) -> "LoggedVersion":
    from tasks.tracking_read import read_version

    if not model or not version:
        raise CampaignError(
            "a model and its version are needed, or --campaign and --round",
            hint="fedloom statement MODEL VERSION; `fedloom status ID` lists a campaign's rounds",
        )
    return read_version(model, version)


def _named(campaign: str, round_number: int, logged: "LoggedVersion | None") -> tuple[str, int]:
    if logged is not None:
        return logged.campaign_id, logged.round
    if round_number < 1:
        raise CampaignError(f"--round is needed with --campaign {campaign}; rounds count from 1")
    return campaign, round_number


def _verified(
    assembly: "Assembly", store: "ObjectStore", number: int, *, logged: "LoggedVersion | None"
) -> "Verification":
    from tasks.statement_logged import verify_logged

    with progress() as bar:
        task = bar.add_task("checking")
        return verify_logged(
            assembly,
            store,
            number,
            logged=logged,
            on_check=lambda what: bar.update(task, description=f"checking: {what}"),
        )


def _show(verified: "Verification") -> None:
    for check in verified.checks:
        mark = "does not hold" if check.complaint else "holds"
        note = f" ({check.note})" if check.note else ""
        console_err.print(f"{mark}: {check.what}{note}", markup=False)
    broken = verified.broken
    if broken is None:
        console_err.print("the statement holds", style="bold green")
    else:
        console_err.print(f"the statement does not hold: {broken.complaint}", markup=False)


def _write_page(target: Path, made: Any) -> None:
    from tasks.statement_page import to_html

    try:
        target.write_text(to_html(made), encoding="utf-8")
    except OSError as error:
        raise CampaignError(f"{target}: cannot be written: {error.strerror}") from error
    console_err.print(f"{target} is written", markup=False)
