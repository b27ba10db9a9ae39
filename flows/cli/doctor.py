"""``fedloom doctor``: is this installation, and are the servers it names, fit to run campaigns."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.cli.context import HomeOption, JsonOption, is_coordinator_stated
from flows.cli.output import console_err, print_json, progress
from flows.health import Addresses, disk, installation, servers
from flows.local_stack import DEFAULT_HOME, Stack, connect
from flows.local_workers import environment
from flows.stack_file import stack_path
from tasks.checks import Check

if TYPE_CHECKING:
    from tasks.invite import Invite

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}

DoctorSiteOption = Annotated[
    Path | None,
    typer.Option("--site-home", help="A site's own folder.", envvar="FEDLOOM_SITE_HOME"),
]
# Where people keep a site, tried in this order where nothing else is stated.
_SITE_PLACES = (Path("site"), Path())


def doctor(
    home: HomeOption = DEFAULT_HOME,
    site_home: DoctorSiteOption = None,
    invite: Annotated[
        Path | None,
        typer.Option(
            help="At a coordinator with servers of its own: the gateway's invite.json, where it "
            "is not in the home's folder gateway."
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check what this machine is: a site, or a coordinator.

    At a site: versions, keys, disks, memory, the way to the gateway, both certificates, clock,
    store permissions, ledgers, witnesses, and what approved campaigns need. At a coordinator:
    versions, servers, the store's write-once promise, the gateway's certificate as sites see it,
    clocks and disk space; servers are those that the environment names where it names a store,
    else those of the home folder.

    A site is looked at where `--site-home` or `--home` names its folder, or where one lies in
    `site` or here and no coordinator is stated. Ends with exit code 1 when a check fails.

    Example: `fedloom doctor --site-home /srv/fedloom`
    """
    found_site = _site_home(home, site_home, os.environ)
    with progress() as display:
        display.add_task("looking", total=None)
        looked = (
            _coordinator_checks(home, invite) if found_site is None else _site_checks(found_site)
        )
        checks = [*installation(), *looked]
    is_healthy = all(check.verdict != "fail" for check in checks)
    console_err.print(_table(checks))
    if json_output:
        print_json({"healthy": is_healthy, "checks": [asdict(check) for check in checks]})
    raise typer.Exit(0 if is_healthy else 1)


def _site_home(home: Path, stated: Path | None, variables: Mapping[str, str]) -> Path | None:
    """Return the site's folder that is meant, or None where a coordinator is."""
    if stated is not None:
        return stated
    if (home / "site.toml").exists():
        return home
    if stack_path(home).exists() or "FEDLOOM_STORE" in variables or "PREFECT_API_URL" in variables:
        return None
    return next((place for place in _SITE_PLACES if (place / "site.toml").exists()), None)


def _site_checks(home: Path) -> Iterator[Check]:
    from tasks.site_config import SiteHome
    from tasks.site_health import site_checks

    return site_checks(SiteHome(home.resolve()))


def _coordinator_checks(home: Path, invite: Path | None) -> Iterator[Check]:
    yield disk(home)
    if is_coordinator_stated() or not stack_path(home).exists():
        yield from servers(_stated_addresses(os.environ))
        yield from _stated_gateway(home, invite)
        return
    stack = connect(home)
    if stack is None:
        remedy = f"`fedloom up --home {home}` starts it"
        yield Check("local stack", "fail", f"not running over {home}", remedy)
        return
    yield from servers(_stated_addresses(environment(stack)))
    yield from _own_gateway(stack)


def _own_gateway(stack: Stack) -> Iterator[Check]:
    from flows.local_gateway import local_invite

    return _gateway(local_invite(stack.home, stack.file))


def _stated_gateway(home: Path, stated: Path | None) -> Iterator[Check]:
    """Look at the gateway beside servers of one's own, where its invite is here or is stated."""
    from flows.gateway.files import INVITE
    from tasks.invite import read_invite

    path = stated or home / "gateway" / INVITE
    if stated is None and not path.exists():
        if not is_coordinator_stated():
            return
        remedy = "state --invite with what `fedloom gateway show --out invite.json` writes"
        yield Check("gateway", "warn", f"not looked at: no invite at {path}", remedy)
        return
    yield from _gateway(read_invite(path))


def _gateway(invite: "Invite") -> Iterator[Check]:
    """Look at the gateway as a site does before it says who it is."""
    from tasks.gateway_access import SiteDoor
    from tasks.invite import accept_invite
    from tasks.tls_health import tls_checks

    with tempfile.TemporaryDirectory(prefix="fedloom-doctor-") as folder:
        pinned = accept_invite(invite, Path(folder)).model_copy(update={"identify": "token"})
        yield from tls_checks(SiteDoor(site="gateway", home=Path(folder), access=pinned))


def _stated_addresses(variables: Mapping[str, str]) -> Addresses:
    return Addresses(
        prefect_api=variables.get("PREFECT_API_URL"),
        mlflow=variables.get("MLFLOW_TRACKING_URI"),
        store_environment=variables if variables.get("FEDLOOM_STORE") else None,
    )


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, Text(check.found), Text(check.remedy))
    return table
