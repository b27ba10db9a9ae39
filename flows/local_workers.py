"""The workers of a local stack, and the settings that each process gets.

Settings are handed over as environment variables and made here in one place: the coordinator's
processes get its keys; a site's process gets no address and no key at all, what it needs is in its
own folder. A real site runs the same command on its own machine; here it is a process beside the
servers, which reaches them through the gateway only.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.home_upgrade import take_sites_through_gateway
from flows.local_federation import federation_folder, make_local_federation
from flows.local_sites import made_sites, site_home
from flows.local_stack import Stack
from flows.processes import Command, ServerProcess, is_alive, spawn
from flows.servers import PREFECT_ENV
from flows.stack_file import BUCKET, record_process

_USERS_OWN = ("FEDLOOM_MODELS", "FEDLOOM_SUITES")
FEDLOOM = (sys.executable, "-m", "flows.cli.main")
"""The command ``fedloom`` of this very installation."""


def start_worker(
    stack: Stack, name: str, argv: Sequence[str], env: Mapping[str, str]
) -> ServerProcess:
    """Start a worker of the stack; its log is ``run/<name>.log``.

    Args:
        stack: A running stack.
        name: What people call it, such as ``site north``; a running one of that name is returned.
        argv: Program and arguments.
        env: All of its settings; nothing of the caller's PREFECT_, MLFLOW_ or FEDLOOM_ variables
            reaches it otherwise.
    """
    running = stack.processes().get(name)
    if running is not None and is_alive(running):
        return running
    if "PREFECT_HOME" in env:
        Path(env["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    plain = name.replace(" ", "-")
    folder = stack.home / "run"
    worker = spawn(
        Command(
            name=name,
            argv=argv,
            env=env,
            folder=folder / f"{plain}.work",
            log_path=folder / f"{plain}.log",
        )
    )
    record_process(stack.home, worker)
    return worker


def start_coordinator_worker(stack: Stack) -> ServerProcess:
    """Start Prefect's own process worker on the coordinator's pool, which must exist."""
    argv = [*(sys.executable, "-m", "prefect", "worker", "start"), *("--name", "coordinator")]
    return start_worker(
        stack,
        "coordinator",
        [*argv, "--pool", "coordinator", "--type", "process"],
        environment(stack) | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
    )


def environment(stack: Stack) -> dict[str, str]:
    """The settings of every process of the coordinator; they hold its keys."""
    keys = stack.file.coordinator
    return {
        **PREFECT_ENV,
        "PREFECT_API_URL": f"{stack.prefect_url}/api",
        "PREFECT_HOME": str(stack.home / "coordinator" / "prefect"),
        "FEDLOOM_STORE": f"s3://{BUCKET}",
        "FEDLOOM_S3_ENDPOINT": stack.s3_endpoint,
        "FEDLOOM_S3_ACCESS_KEY": keys.access_key,
        "FEDLOOM_S3_SECRET_KEY": keys.secret_key,
        "MLFLOW_TRACKING_URI": stack.mlflow_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "FEDLOOM_HOME": str(stack.home),
        "FEDLOOM_FEDERATION": str(federation_folder(stack.home)),
        "FEDLOOM_HOLDOUTS": str(stack.home / "holdouts"),
        **_users_own(),
    }


def evaluation_environment(stack: Stack) -> dict[str, str]:
    """The settings of the evaluation worker: keys that read releases and no site's update."""
    keys = stack.file.evaluation
    own = environment(stack)
    kept = {k: v for k, v in own.items() if k not in {"FEDLOOM_FEDERATION", "MLFLOW_TRACKING_URI"}}
    return kept | {
        "FEDLOOM_S3_ACCESS_KEY": keys.access_key,
        "FEDLOOM_S3_SECRET_KEY": keys.secret_key,
    }


def site_environment(stack: Stack, site: str) -> dict[str, str]:
    """The settings of a site's process: no address, no key; those are in the site's folder."""
    prefect_home = site_home(stack.home, site).root / "prefect"
    return {**PREFECT_ENV, "PREFECT_HOME": str(prefect_home), **_users_own()}


def _users_own() -> dict[str, str]:
    # Folders of base models and suites are the user's own, and the same for every process.
    return {name: os.environ[name] for name in _USERS_OWN if name in os.environ}


def start_workers(stack: Stack) -> list[ServerProcess]:
    """Register what Prefect must know and start every worker of a home that does not run.

    These are the coordinator's, the evaluation's, and one for each site of the home.

    Raises:
        ServerFailed: Prefect does not answer.
    """
    sites = made_sites(stack.home)
    take_sites_through_gateway(stack)
    make_local_federation(stack)
    register_pools(stack, sites=sites)
    workers = [
        start_coordinator_worker(stack),
        start_worker(
            stack, "evaluation", [*FEDLOOM, "evaluation", "start"], evaluation_environment(stack)
        ),
    ]
    for site in sites:
        argv = [*FEDLOOM, "site", "start", "--home", str(site_home(stack.home, site).root)]
        workers.append(start_worker(stack, f"site {site}", argv, site_environment(stack, site)))
    return workers


def register_pools(stack: Stack, *, sites: Sequence[str]) -> None:
    """Make the work pools and deployments at the stack's Prefect server; safe to repeat."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.registration import register

    with temporary_settings({PREFECT_API_URL: f"{stack.prefect_url}/api"}):
        register(sites=sites)
