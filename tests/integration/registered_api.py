"""A real Prefect server at which a federation is registered."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import registration
from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect


@contextlib.contextmanager
def registered_api(folder: Path, *, sites: Sequence[str]) -> Iterator[SyncPrefectClient]:
    """Start a server, register these sites, and let this process address it until the end."""
    with ended_with_this_process():
        server = start_prefect(folder)
        url = f"{server.url}/api"
        try:
            with temporary_settings({PREFECT_API_URL: url}), SyncPrefectClient(url) as made:
                registration.register(sites=sites)
                yield made
        finally:
            stop(server)


def command(*words: str, client: SyncPrefectClient, store: Path) -> subprocess.CompletedProcess:
    """Run `fedloom ...` with this server and a store in a folder."""
    env = os.environ | {"PREFECT_API_URL": str(client.api_url), "FEDLOOM_STORE": store.as_uri()}
    return subprocess.run(
        [f"{sys.prefix}/bin/fedloom", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
