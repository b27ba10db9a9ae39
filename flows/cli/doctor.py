"""``fedloom doctor``: is this installation, and are the servers it names, fit to run campaigns."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from flows.cli.context import HomeOption, JsonOption
from flows.cli.output import console_err, print_json, progress
from flows.health import Addresses, disk, installation, servers
from flows.local_stack import DEFAULT_HOME, connect
from flows.local_workers import environment
from flows.stack_file import stack_path
from tasks.checks import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    home: HomeOption = DEFAULT_HOME,
    json_output: JsonOption = False,
) -> None:
    """Check versions, servers, the store's write-once promise, clocks and disk space.

    Servers are those of the home folder, or, where it has none, those that the environment names.
    Ends with exit code 1 when something is wrong.

    Example: `fedloom doctor --home .fedloom`
    """
    with progress() as display:
        display.add_task("looking", total=None)
        checks = [*installation(), disk(home), *_server_checks(home)]
    is_healthy = all(check.verdict != "fail" for check in checks)
    console_err.print(_table(checks))
    if json_output:
        print_json({"healthy": is_healthy, "checks": [asdict(check) for check in checks]})
    raise typer.Exit(0 if is_healthy else 1)


def _server_checks(home: Path) -> list[Check]:
    if not stack_path(home).exists():
        return list(servers(_stated_addresses(os.environ)))
    stack = connect(home)
    if stack is None:
        remedy = f"`fedloom up --home {home}` starts it"
        return [Check("local stack", "fail", f"not running over {home}", remedy)]
    return list(servers(_stated_addresses(environment(stack))))


def _stated_addresses(variables: Mapping[str, str]) -> Addresses:
    return Addresses(
        prefect_api=variables.get("PREFECT_API_URL"),
        mlflow=variables.get("MLFLOW_TRACKING_URI"),
        store_environment=variables if "FEDLOOM_STORE" in variables else None,
    )


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, Text(check.found), Text(check.remedy))
    return table
