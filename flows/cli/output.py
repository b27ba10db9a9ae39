"""How every command speaks: people read stderr, programs read stdout.

Progress, tables and errors go to stderr; with ``--json`` exactly one JSON document goes to
stdout. An error is shown once, with what to do about it, and without a traceback: the text of a
``FedloomError`` is written for the person at the terminal.
"""

import json
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from fl_core.errors import (
    CampaignError,
    DataGateFailed,
    FedloomError,
    ModelMismatch,
    PolicyRefused,
    PortInUse,
    StoreUnavailable,
)

console_err = Console(stderr=True, highlight=False)
"""Everything for people."""

BAD_INPUT = 2
"""Exit code for what the caller has to change before anything can run."""

_INPUT_ERRORS = (
    CampaignError,
    DataGateFailed,
    ModelMismatch,
    PolicyRefused,
    PortInUse,
    StoreUnavailable,
)


def print_json(document: dict[str, Any]) -> None:
    """Write one JSON document to stdout; a command calls it at most once.

    Raises:
        ValueError: A number is not finite; JSON has no word for it.
    """
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def exit_code(error: FedloomError) -> int:
    """Return 2 for what has to be changed before anything can run, else 1."""
    return BAD_INPUT if isinstance(error, _INPUT_ERRORS) else 1


def fail(error: FedloomError) -> NoReturn:
    """Show one clear error with its hint on stderr and end with ``exit_code(error)``."""
    # Text, not markup: a value such as "[north]" must be shown as it is.
    console_err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
    if error.hint:
        console_err.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)
    raise typer.Exit(exit_code(error))


def progress(*, counts: bool = False) -> Progress:
    """A progress display on stderr: spinner, text, elapsed time.

    Args:
        counts: Also a bar and "3/6", for work whose length is known.
    """
    bar = [BarColumn(bar_width=24), MofNCompleteColumn()] if counts else []
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *bar,
        TimeElapsedColumn(),
        console=console_err,
    )
