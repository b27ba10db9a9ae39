"""`fedloom backup` and `fedloom restore`: the campaigns' store in a folder, and back.

The store is the only state of campaigns. Databases, MLflow's bucket and the home's secrets are
saved by their own tools; docs/operations.md says which, and in what order.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json, progress


def backup(
    folder: Annotated[Path, typer.Argument(help="Folder of the backup; a later one adds to it.")],
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Copy the campaigns' store into a folder, every object checked by its hash.

    Safe while rounds run; raw updates under noise of the coordinator are left out. Databases,
    MLflow's bucket and the home's secrets are not in it.

    Example: `fedloom backup /mnt/backup/fedloom`
    """
    from fl_core.artifacts.local import LocalStore
    from tasks.settings import open_store, read_settings
    from tasks.store_backup import back_up

    use_coordinator(home, needed=("s3",))
    store = open_store(read_settings())
    with progress() as display:
        line = display.add_task("copying", total=None)
        done = back_up(
            store,
            LocalStore(folder),
            tell=lambda n: display.update(line, description=f"{n} objects copied"),
        )
    console_err.print(f"{done.new} objects copied, {done.known} were there, in {folder}")
    if done.left_out:
        console_err.print(f"{done.left_out} raw updates of open rounds are left out")
    if json_output:
        print_json({"folder": str(folder), **asdict(done)})


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of `fedloom backup`.")],
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Write a backup of the campaigns' store into a store that is empty, or was filled from it.

    What was revoked after the backup has to be revoked again: compare `fedloom sites` with your
    notes before rounds go on.

    Example: `fedloom restore /mnt/backup/fedloom`
    """
    from fl_core.artifacts.local import LocalStore
    from tasks.settings import open_store, read_settings
    from tasks.store_backup import restore as write_back

    use_coordinator(home, needed=("s3",))
    store = open_store(read_settings())
    with progress() as display:
        line = display.add_task("restoring", total=None)
        done = write_back(
            LocalStore(folder),
            store,
            tell=lambda n: display.update(line, description=f"{n} objects restored"),
        )
    console_err.print(
        f"{done.new} objects restored, {done.known} were there; next: `fedloom sites`, and revoke "
        "again what was revoked after the backup"
    )
    if json_output:
        print_json({"folder": str(folder), **asdict(done)})
