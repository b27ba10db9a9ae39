"""Checks of an installation and of the servers it talks to.

Each check says what was found and, when that is wrong, what to do. A health page is not enough:
Prefect's stays green while a mismatched web framework refuses every list, and MLflow's answers
hosts that its API refuses, so the checks make the calls that campaigns make.
"""

import importlib.metadata
import importlib.util
import platform
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from tasks.checks import Check, called, judged

_PACKAGES: Mapping[str, str] = {
    "torch": "",
    "transformers": "",
    "peft": "",
    "prefect": "3.8.8",
    "fastapi": "",
    "sqlalchemy": "",
    "mlflow": "",
    "great-expectations": "",
    "dp-accounting": "",
}
# prefect 3.8.8: filter calls answer 422 with fastapi >= 0.151, and the scheduler fails on every
# pass with sqlalchemy >= 2.1
_BELOW: Mapping[str, tuple[int, int]] = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
_MAX_SKEW_S = 5.0
_LEAST_FREE_GB = 2.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Servers to look at; None is not looked at.

    Attributes:
        prefect_api: Base URL of Prefect's API.
        mlflow: Tracking URI.
        store_environment: Settings of the store, as ``tasks.settings`` reads them.
    """

    prefect_api: str | None
    mlflow: str | None
    store_environment: Mapping[str, str] | None


def installation() -> Iterator[Check]:
    """Check Python, the packages that matter, and where fedloom itself comes from."""
    version = platform.python_version_tuple()
    supported = ("3", "11") <= (version[0], version[1]) < ("3", "14")
    yield judged(
        "python",
        platform.python_version(),
        is_good=supported,
        remedy="expected 3.11 to 3.13; make the environment with one of these",
    )
    for name, pin in _PACKAGES.items():
        yield _package(name, pin)
    yield _sources()


def _package(name: str, pin: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "warn", "not installed")
    if pin and version != pin:
        return Check(name, "fail", version, f"expected {pin}; `pip install {name}=={pin}`")
    bound = _BELOW.get(name)
    if bound is not None and _leading_numbers(version) >= bound:
        below = ".".join(map(str, bound))
        return Check(name, "fail", version, f"Prefect needs it; `pip install '{name}<{below}'`")
    return Check(name, "ok", version)


def _leading_numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _sources() -> Check:
    folders = {}
    for package in ("fl_core", "tasks", "flows"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return Check("fedloom", "fail", f"package {package!r} is absent", "install it again")
        folders[package] = Path(spec.origin).parent.parent
    together = len(set(folders.values())) == 1
    found = ", ".join(f"{name} from {folder}" for name, folder in folders.items())
    return judged(
        "fedloom",
        str(folders["flows"]) if together else found,
        is_good=together,
        remedy="the three packages come from different installations; remove all but one",
    )


def disk(folder: Path) -> Check:
    """Check that there is room for a campaign's history (a home takes about 0.2 GB at first)."""
    existing = next(path for path in [folder.resolve(), *folder.resolve().parents] if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    return judged(
        "disk",
        f"{free_gb:.1f} GB free at {existing}",
        is_good=free_gb >= _LEAST_FREE_GB,
        remedy=f"expected at least {_LEAST_FREE_GB:.0f} GB; make room or choose another --home",
    )


def servers(addresses: Addresses) -> Iterator[Check]:
    """Check every stated server: does it answer what campaigns ask, and what is its time."""
    if addresses.prefect_api is not None:
        api = addresses.prefect_api
        yield called("prefect", lambda: _work_pools(api), remedy=f"start the server behind {api}")
    if addresses.mlflow is not None:
        uri = addresses.mlflow
        yield called("mlflow", lambda: _experiments(uri), remedy=f"start the server behind {uri}")
    if addresses.store_environment is not None:
        stated = addresses.store_environment
        yield called(
            "store", lambda: _write_once(stated), remedy="look at the store's address and keys"
        )
    yield from _clocks(addresses)


def _work_pools(api: str) -> str:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.registration import api as prefect_client

    settings = {PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(settings), prefect_client() as client:
        pools = client.read_work_pools()
    return f"{len(pools)} work pools at {api}"


def _experiments(uri: str) -> str:
    _get(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1")
    return f"lists experiments at {uri}"


def _write_once(environment: Mapping[str, str]) -> str:
    from tasks.object_store import require_write_once
    from tasks.settings import open_store, read_settings

    settings = read_settings(environment)
    require_write_once(open_store(settings))
    return f"{environment['FEDLOOM_STORE']} refuses to overwrite"


def _clocks(addresses: Addresses) -> Iterator[Check]:
    stated = addresses.store_environment or {}
    urls = {
        "prefect": addresses.prefect_api and f"{addresses.prefect_api}/health",
        "mlflow": addresses.mlflow and f"{addresses.mlflow}/health",
        "store": stated.get("FEDLOOM_S3_ENDPOINT"),
    }
    for name, url in urls.items():
        skew = clock_skew_s(url) if url else None
        if skew is None:
            continue
        yield judged(
            f"clock of {name}",
            f"{skew:+.1f} s against this machine",
            is_good=abs(skew) <= _MAX_SKEW_S,
            remedy=f"expected at most {_MAX_SKEW_S:.0f} s, deadlines are absolute; run NTP on both",
        )


def clock_skew_s(url: str) -> float | None:
    """How far a server's clock is ahead of this machine's, from its HTTP ``Date`` header.

    Returns:
        Seconds, to about half a second; None when the server does not answer or states no date.
    """
    before = time.time()
    try:
        stated = _get(url)
    except urllib.error.HTTPError as error:
        stated = error.headers.get("Date")  # a refusal has a date too
    except OSError:
        return None
    if stated is None:
        return None
    # The header is cut to whole seconds, so the server's time is half a second later on average.
    return parsedate_to_datetime(stated).timestamp() + 0.5 - (before + time.time()) / 2


def _get(url: str) -> str | None:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 -- the user's own settings
        response.read()
        date = response.headers.get("Date")
        return None if date is None else str(date)
