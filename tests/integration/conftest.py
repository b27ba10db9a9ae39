"""Real servers, one of each per session."""

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_stack import GatewayStack

from flows import local_stack
from flows.local_stack import Stack
from flows.processes import ended_with_this_process, free_port, stop
from flows.servers import S3Access, start_mlflow, start_prefect, start_seaweed


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on SQLite that serves its artifacts from a folder."""
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield server.url
    stop(server)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Access]:
    """A real S3 server with an administrator's keys and no bucket."""
    keys = {"access_key": "tests", "secret_key": secrets.token_hex(16)}
    with ended_with_this_process():
        server = start_seaweed(tmp_path_factory.mktemp("seaweed"), **keys)
        yield S3Access(server.url, **keys)
        stop(server)


@pytest.fixture(scope="session")
def new_home() -> Iterator[Callable[[], Path]]:
    """A function that makes an empty folder outside pytest's own.

    PostgreSQL, which runs under another account where tests run as root, must be able to enter its
    folder, and every pytest session closes the common parent of temporary folders again.
    """
    with contextlib.ExitStack() as folders:
        yield lambda: Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="fedloom-")))


@pytest.fixture(scope="session")
def stack(new_home: Callable[[], Path]) -> Iterator[Stack]:
    """A whole local stack without workers; tests leave it running."""
    home = new_home()
    with ended_with_this_process():
        yield local_stack.start(home)
        local_stack.stop(home)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Access) -> Iterator[GatewayStack]:
    """A gateway in front of the S3 server and a Prefect server, with two enrolled sites."""
    folder = tmp_path_factory.mktemp("gateway")
    with ended_with_this_process():
        prefect = start_prefect(folder / "prefect")
        stack = GatewayStack(folder, seaweed, prefect)
        server = stack.start(free_port())
        yield stack
        stop(server)
        stop(prefect)
