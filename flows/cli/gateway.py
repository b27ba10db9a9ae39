"""`fedloom gateway start|show`: the sites' only door to the coordinator.

A local stack starts its gateway by itself; these commands are for a coordinator that is put
together from its parts, and for handing out the invite.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import CampaignError
from flows.cli.context import HomeOption, JsonOption
from flows.cli.output import console_err, print_json

_FOLDER = "gateway"


def gateway_start(  # noqa: PLR0913  a command's options
    home: HomeOption = Path(".fedloom"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; left out, the one of the url.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="Address that sites use, https://host:port; needed at the first start. May be "
            "repeated, the one to give out first; other than before, it makes another invite."
        ),
    ] = None,
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy",
            help="A proxy on this machine ends TLS: listen on loopback without it; sites sign.",
        ),
    ] = False,
) -> None:
    """Serve the sites until it is stopped: TLS, one port, nothing else to open.

    Certificate, key and invite lie in the home's folder `gateway`; with `--url` they are made
    where there are none. The store, with keys that open what sites may use, and Prefect are named
    by the environment; a local stack starts its gateway by itself.

    Example: `fedloom gateway start --host 0.0.0.0 --port 8443 --url https://fl.example.org:8443`
    """
    import os

    from flows.gateway.files import prepared_invite
    from flows.gateway.server import Listening, port_of, serve
    from tasks.settings import open_store, read_settings

    folder = home.resolve() / _FOLDER
    _require_stated(os.environ)
    invite = prepared_invite(folder, urls=url or (), is_behind_proxy=behind_proxy, tell=_say)
    listening = Listening(folder, host, port or port_of(invite.url), behind_proxy=behind_proxy)
    serve(
        listening,
        open_store(read_settings()),
        prefect_url=os.environ["PREFECT_API_URL"],
        prefect_auth=os.environ.get("PREFECT_API_AUTH_STRING"),
    )


def _require_stated(variables: Mapping[str, str]) -> None:
    """Refuse to fall back on a stack: its coordinator's keys open more than a gateway may."""
    missing = [name for name in ("FEDLOOM_STORE", "PREFECT_API_URL") if not variables.get(name)]
    if missing:
        raise CampaignError(
            f"{' and '.join(missing)} is not set, expected the store with the gateway's own keys "
            "and Prefect's API behind it; `fedloom up` starts the gateway of a local stack"
        )


def _say(text: str) -> None:
    console_err.print(text, markup=False)


def gateway_show(
    home: HomeOption = Path(".fedloom"),
    out: Annotated[
        str | None, typer.Option(help="Write the invite to this file; - is stdout.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show where the gateway is and what its certificate is recognised by.

    The invite is what an operator needs for `fedloom site init NAME --gateway invite.json`. It
    holds no secret, but whoever can swap it can pose as the coordinator: compare the fingerprint.

    Example: `fedloom gateway show --out invite.json`
    """
    from fl_core.artifacts.documents import to_bytes
    from flows.gateway.files import INVITE, fingerprint_of
    from tasks.invite import read_invite

    path = home.resolve() / _FOLDER / INVITE
    invite = read_invite(path)
    shown = fingerprint_of(invite)
    text = f"gateway {invite.url}\ncertificate sha-256 {shown}\ninvite {path}"
    console_err.print(text, soft_wrap=True, markup=False)
    if out == "-" and not json_output:
        sys.stdout.write(to_bytes(invite).decode() + "\n")
    elif out is not None:
        Path(out).write_bytes(to_bytes(invite))
    if json_output:
        plain = invite.model_dump(mode="json", exclude_none=True)
        print_json({"url": invite.url, "certificate_sha256": shown, "invite": plain})
