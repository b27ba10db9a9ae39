"""The two databases of a local stack: in PostgreSQL of its own, or in one that the user states.

``FEDLOOM_POSTGRES_URL`` names a server that somebody else runs; it must have the databases
``prefect`` and ``mlflow``, or let them be made. Each of the two servers reads its own driver.
"""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from fl_core.errors import CampaignError
from flows.postgres import require_database, running_url, start_postgres
from flows.processes import ServerProcess

_DATABASES = ("prefect", "mlflow")
_BY_DRIVER = {"asyncpg": "prefect", "psycopg2": "mlflow"}

UrlOf = Callable[[str], str]
"""From a driver's name to the address of its user's database."""


def database_urls(home: Path, up: Callable[[ServerProcess], None]) -> UrlOf:
    """Start PostgreSQL or use the stated one; a driver's name gives its user's database.

    Args:
        home: The stack's home.
        up: Told of the server that was started.

    Raises:
        CampaignError: The stated address is none of PostgreSQL.
        ServerFailed: It did not start, or cannot provide the databases.
    """
    own = os.environ.get("FEDLOOM_POSTGRES_URL")
    if own is not None:
        return _stated(own)
    database = start_postgres(home / "postgres", databases=_DATABASES)
    up(database.process)
    return lambda driver: database.url(_BY_DRIVER[driver], driver=driver)


def running_database_urls(home: Path) -> UrlOf:
    """Return the addresses of databases that are up already; raises as ``database_urls``."""
    own = os.environ.get("FEDLOOM_POSTGRES_URL")
    if own is not None:
        return _stated(own)
    folder = home / "postgres"
    return lambda driver: running_url(folder, _BY_DRIVER[driver], driver=driver)


def _stated(own: str) -> UrlOf:
    parts = urlsplit(own)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise CampaignError(
            f"FEDLOOM_POSTGRES_URL starts with {parts.scheme!r}, expected "
            "postgresql://user:password@host:port/database; correct or unset it"
        )
    for name in _DATABASES:
        require_database(own, name)
    return lambda driver: urlunsplit(
        parts._replace(scheme=f"postgresql+{driver}", path=f"/{_BY_DRIVER[driver]}")
    )
