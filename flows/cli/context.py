"""Which coordinator a command speaks to: a home's stack, or what the environment names.

A real deployment sets FEDLOOM_STORE, PREFECT_API_URL and MLFLOW_TRACKING_URI; on a laptop the
stack of a home folder sets them. Nothing of Prefect may be imported before this has run, since it
reads its settings once.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import CampaignError

HomeOption = Annotated[
    Path, typer.Option("--home", help="Folder of the local stack.", envvar="FEDLOOM_HOME")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; progress stays on stderr.")
]


def use_coordinator(home: Path) -> None:
    """Point this process at the coordinator.

    Raises:
        CampaignError: The environment names no store and no stack runs over ``home``.
    """
    if "FEDLOOM_STORE" in os.environ and "PREFECT_API_URL" in os.environ:
        return
    from flows.local_stack import connect
    from flows.local_workers import environment

    stack = connect(home, needed=("s3", "prefect"))
    if stack is None:
        raise CampaignError(
            f"no stack runs over {home}, and FEDLOOM_STORE and PREFECT_API_URL are not both set",
            hint=f"start it with `fedloom up --home {home} --detach`",
        )
    os.environ.update(environment(stack))
