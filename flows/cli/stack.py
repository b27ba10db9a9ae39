"""``fedloom up`` and ``fedloom down``: the local stack over a home folder.

``up`` stays in the foreground and ends everything when it ends, in whatever way; ``--detach``
leaves the stack running for ``down`` to end. Both may be repeated at any time.
"""

import signal
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fl_core.errors import FedloomError
from flows.cli.context import HomeOption, JsonOption
from flows.cli.output import console_err, print_json, progress
from flows.local_stack import DEFAULT_HOME, Stack, connect, require_alive, start, stop
from flows.local_workers import start_workers
from flows.processes import ended_with_this_process


def up(
    home: HomeOption = DEFAULT_HOME,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running; `fedloom down` ends it.")
    ] = False,
    prefect_port: Annotated[
        int | None, typer.Option(help="Port for Prefect, from now on.", min=1, max=65535)
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(help="Port for MLflow, from now on.", min=1, max=65535)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Bring the servers and workers of a home folder up.

    The same pages, campaigns and sites as before come back. Ctrl-C ends it cleanly.

    Example: `fedloom up --home .fedloom --detach`
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        was_running = connect(home) is not None
        with ended_with_this_process():
            stack = _start(home, prefect_port=prefect_port, mlflow_port=mlflow_port)
            _show(stack, json_output=json_output)
            if not detach and not was_running:
                _stay(stack)
    except KeyboardInterrupt:
        # What was half-way up was ended with the context above; this also clears its records.
        stop(home, on_progress=_say)
        raise typer.Exit(0) from None
    except FedloomError:
        stop(home)
        raise


def down(home: HomeOption = DEFAULT_HOME, json_output: JsonOption = False) -> None:
    """End the servers and workers of a home folder; its data stay.

    Example: `fedloom down --home .fedloom`
    """
    ended = stop(home, on_progress=_say)
    if not ended:
        _say(f"nothing was running over {home}")
    if json_output:
        print_json({"home": str(home.resolve()), "stopped": ended})


def _start(home: Path, *, prefect_port: int | None, mlflow_port: int | None) -> Stack:
    from flows.local_sites import made_sites

    with progress() as display:
        display.add_task("starting servers", total=None)
        stack = start(
            home,
            sites=made_sites(home),
            prefect_port=prefect_port,
            mlflow_port=mlflow_port,
            on_progress=display.console.print,
        )
        start_workers(stack)
    return stack


def _stay(stack: Stack) -> NoReturn:
    while True:
        time.sleep(1)
        require_alive(stack)


def _show(stack: Stack, *, json_output: bool) -> None:
    _say(f"Prefect  {stack.prefect_url}\nMLflow   {stack.mlflow_url}\nS3       {stack.s3_endpoint}")
    if json_output:
        print_json(_document(stack))


def _document(stack: Stack) -> dict[str, Any]:
    return {
        "home": str(stack.home),
        "ui": {"prefect": stack.prefect_url, "mlflow": stack.mlflow_url},
        "s3_endpoint": stack.s3_endpoint,
        "processes": {name: each.pid for name, each in stack.processes().items()},
        "seconds": dict(stack.seconds),
    }


def _say(text: str) -> None:
    console_err.print(text, markup=False)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
