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
from flows.local_stack import DEFAULT_HOME, Stack, any_running, require_alive, start, stop
from flows.local_workers import start_workers
from flows.processes import ended_with_this_process
from flows.stack_file import Stated
from tasks.invite import read_invite


def up(  # noqa: PLR0913, PLR0917  one parameter per option of the command
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
    gateway_port: Annotated[
        int | None,
        typer.Option(
            help="Port for the sites' gateway, from now on; another one than before is a new "
            "invite for every site on another machine.",
            min=1,
            max=65535,
        ),
    ] = None,
    gateway_listen: Annotated[
        str | None, typer.Option(help="Address that it listens on; 0.0.0.0 is every one.")
    ] = None,
    gateway_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which sites elsewhere reach it; may be repeated."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Bring the servers and workers of a home folder up.

    The same pages, campaigns and sites as before come back. Ctrl-C ends it cleanly. Where some of
    it runs and the rest ended, the rest is started and goes on in the background. Sites on other
    machines reach the gateway only; give their operators its invite.

    Example: `fedloom up --home .fedloom --detach --gateway-listen 0.0.0.0 --gateway-host
    fedloom.example.org`
    """
    stated = Stated(
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        gateway_port=gateway_port,
        gateway_listen=gateway_listen,
        gateway_hosts=tuple(gateway_host) if gateway_host else None,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    was_running = False
    try:
        was_running = any_running(home)
        with ended_with_this_process():
            stack = _start(home, stated)
            _show(stack, json_output=json_output)
            if not detach and not was_running:
                _stay(stack)
    except KeyboardInterrupt:
        # What was half-way up was ended with the context above; this also clears its records.
        if not was_running:
            stop(home, on_progress=_say)
        raise typer.Exit(0) from None
    except FedloomError:
        # A stack that runs goes on, whatever was wrong with what is stated now.
        if not was_running:
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


def _start(home: Path, stated: Stated) -> Stack:
    with progress() as display:
        display.add_task("starting servers", total=None)
        stack = start(home, stated=stated, on_progress=display.console.print)
        start_workers(stack)
    return stack


def _stay(stack: Stack) -> NoReturn:
    while True:
        time.sleep(1)
        require_alive(stack)


def _show(stack: Stack, *, json_output: bool) -> None:
    _say(
        f"Prefect  {stack.prefect_url}\nMLflow   {stack.mlflow_url}\nS3       {stack.s3_endpoint}\n"
        f"Gateway  {read_invite(stack.invite).url}, invite for sites: {stack.invite}"
    )
    if json_output:
        print_json(_document(stack))


def _document(stack: Stack) -> dict[str, Any]:
    return {
        "home": str(stack.home),
        "ui": {"prefect": stack.prefect_url, "mlflow": stack.mlflow_url},
        "s3_endpoint": stack.s3_endpoint,
        "gateway": {
            "url": read_invite(stack.invite).url,
            "local_url": stack.gateway_url,
            "invite": str(stack.invite),
        },
        "processes": {name: each.pid for name, each in stack.processes().items()},
        "seconds": dict(stack.seconds),
    }


def _say(text: str) -> None:
    console_err.print(text, markup=False)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
