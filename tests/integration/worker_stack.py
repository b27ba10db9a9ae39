"""A real Prefect server and real worker processes for the tests of the site's worker."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from flows.prefect_names import WORKER_TYPE
from flows.processes import ServerProcess

HERE = Path(__file__).parent
ALLOWED = {
    "touch": "worker_flows.touch",
    "count": "worker_flows.count",
    "work": "worker_flows.work",
    "fail-in-flow": "worker_flows.fail_in_flow",
    "fail-in-task": "worker_flows.fail_in_task",
    "time-out-in-flow": "worker_flows.time_out_in_flow",
    "time-out-in-task": "worker_flows.time_out_in_task",
    "interrupted": "worker_flows.interrupted",
    "exit": "worker_flows.leave",
    "hold": "worker_flows.hold",
}
T = TypeVar("T")
_START = "import json, sys; import flows.site_worker as site_worker; "
# A worker that was killed takes its child along much sooner.
_START += "site_worker.LOCK_WAIT_S = 5.0; "
_START += "site_worker.run_worker(**json.loads(sys.argv[1]))"


def wait_for(question: Callable[[], T], *, what: str, limit_s: float = 60) -> T:
    """Ask until the answer is true; a bound, not a measurement."""
    deadline = time.monotonic() + limit_s
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.1)
    return answer


def is_alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Worker:
    """A worker process of one pool."""

    process: subprocess.Popen[bytes]
    pool: str
    home: Path
    log: Path

    def is_ready(self) -> bool:
        return "worker ready" in self.log.read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


class Stack:
    """Ways to make pools, deployments, workers and runs against one server."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self.folder = folder
        self.server = server
        self.workers: list[Worker] = []
        self.client = SyncPrefectClient(server.url + "/api")

    @property
    def database(self) -> Path:
        return self.folder / "server" / "home" / "prefect.db"

    def make_pool(self, pool: str) -> None:
        made = WorkPoolCreate(name=pool, type=WORKER_TYPE, concurrency_limit=1)
        self.client.create_work_pool(made, overwrite=True)

    def start_worker(self, pool: str, **choices: Any) -> Worker:
        home = self.folder / f"home-{pool}"
        home.mkdir(exist_ok=True)
        log = self.folder / f"{pool}-{len(self.workers)}.log"
        environment = os.environ | {
            "PREFECT_API_URL": self.server.url + "/api",
            "PREFECT_HOME": str(home),
            "PYTHONPATH": str(HERE),
            "FEDLOOM_TEST_PRELOAD": str(home / "preloaded"),
            # The worker turns it off in code; the setting says the opposite.
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
        }
        plain = {"pool": pool, "allowed": ALLOWED, "preload": None, "name": "w"}
        argument = json.dumps(plain | {"api_logging": False} | choices)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, argument],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, pool, home, log)
        self.workers.append(worker)
        return worker

    def create_run(
        self,
        pool: str,
        flow_name: str,
        parameters: dict[str, Any],
        *,
        title: str = "honest",
        **deployment: Any,
    ) -> FlowRun:
        identity = self.client.create_deployment(
            self.client.create_flow_from_name(flow_name),
            f"{flow_name}-{pool}-{title}",
            work_pool_name=pool,
            enforce_parameter_schema=False,
            parameter_openapi_schema={"type": "object", "properties": {}},
            **deployment,
        )
        return self.client.create_flow_run_from_deployment(identity, parameters=parameters)

    def state(self, flow_run: FlowRun) -> tuple[str, str | None]:
        state = self.client.read_flow_run(flow_run.id).state
        return (state.type.value, state.message) if state else ("", None)

    def final_state(self, flow_run: FlowRun, *, limit_s: float = 60) -> tuple[str, str | None]:
        def over() -> bool:
            state = self.client.read_flow_run(flow_run.id).state
            return state is not None and state.is_final()

        wait_for(over, what=f"the end of run {flow_run.name}", limit_s=limit_s)
        return self.state(flow_run)

    def database_bytes(self) -> bytes:
        """Everything the server stored, as one searchable text."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30) as connection:
            return "\n".join(connection.iterdump()).encode()

    def close(self) -> None:
        for worker in self.workers:
            # Its child ends with it; a test has judged by now how it stops when asked.
            worker.process.kill()
            worker.process.wait()
