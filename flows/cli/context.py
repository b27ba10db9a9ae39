"""Which coordinator a command speaks to: a home's stack, or what the environment names.

A real deployment sets FEDLOOM_STORE, PREFECT_API_URL and MLFLOW_TRACKING_URI; on a laptop the
stack of a home folder sets them. FEDLOOM_STORE decides, in every command alike: where it is set,
nothing of a stack is used, and where it is not, nothing of the environment, which may name a
Prefect server of somebody else's. Nothing of Prefect may be imported before this has run, since it
reads its settings once.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import CampaignError

HomeOption = Annotated[
    Path, typer.Option("--home", help="Folder of the local stack.", envvar="FEDLOOM_HOME")
]
SiteHomeOption = Annotated[
    Path, typer.Option("--home", help="The site's own folder.", envvar="FEDLOOM_SITE_HOME")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; progress stays on stderr.")
]

_DECIDES = "FEDLOOM_STORE"
_VARIABLES = {"s3": _DECIDES, "prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}


def use_coordinator(home: Path, *, needed: Sequence[str] = ("s3", "prefect")) -> None:
    """Point this process at the coordinator.

    Raises:
        CampaignError: As ``coordinator_environment``, or it names no coordinator.
    """
    found = coordinator_environment(home, needed=needed)
    if found is None:
        raise CampaignError(
            f"no stack runs over {home}, and {_DECIDES} is not set",
            hint=f"start it with `fedloom up --home {home} --detach`",
        )
    os.environ.update(found)


def coordinator_environment(home: Path, *, needed: Sequence[str]) -> Mapping[str, str] | None:
    """Return the settings that name the coordinator, or None where nothing names one.

    Args:
        home: Home folder of a local stack.
        needed: Names of the servers that the command asks, of ``s3``, ``prefect``, ``mlflow``.

    Raises:
        CampaignError: The environment names the store and not all that is needed with it.
    """
    if is_coordinator_stated():
        missing = [_VARIABLES[name] for name in needed if not os.environ.get(_VARIABLES[name])]
        if missing:
            raise CampaignError(
                f"{_DECIDES} is set and {', '.join(missing)} is not, expected both; set it, or "
                f"unset {_DECIDES} to use the stack over {home}"
            )
        return os.environ
    from flows.local_stack import connect
    from flows.local_workers import environment

    stack = connect(home, needed=needed)
    return None if stack is None else environment(stack)


def is_coordinator_stated() -> bool:
    """Whether the environment names the coordinator, so that no stack is asked."""
    return bool(os.environ.get(_DECIDES))
