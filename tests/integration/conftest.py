"""Real servers, one of each per session."""

from collections.abc import Iterator

import pytest

from flows.processes import stop
from flows.servers import start_mlflow


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on SQLite that serves its artifacts from a folder."""
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield server.url
    stop(server)
