"""Coordinators in processes of their own, over a folder as store and a real Prefect server.

The sites of ``tests.worlds`` answer from threads of the test, without sessions; their sessions at
the server are seen and set as workers would. The evaluation worker is a thread as well.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Completed, Pending, Running

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, write_document
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import exists
from fl_core.campaign.campaign import Campaign
from fl_core.errors import ObjectMissing
from fl_core.rounds.documents import Outcome, RoundPlan
from fl_core.rounds.plan import read_outcome
from fl_core.rounds.site_round import client_round
from fl_core.updates.records import Evaluation
from flows.servers import PREFECT_ENV
from tests.worlds import World, world_of

_RUN = "import sys; from flows.run_campaign import run_campaign; "
_RUN += "run_campaign(campaign_id=sys.argv[1], rounds=int(sys.argv[2]))"


def wait_for(question: Callable[[], Any], *, what: str, limit_s: float = 60) -> Any:
    """Ask until the answer is true; a bound, not a measurement."""
    deadline = time.monotonic() + limit_s
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.1)
    return answer


@dataclass
class Bench:
    """One campaign over a folder, and ways to run and watch it."""

    api_url: str
    folder: Path
    world: World
    client: SyncPrefectClient
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def campaign_id(self) -> str:
        return self.world.assembly.campaign.id

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "FEDLOOM_STORE": f"file://{self.folder}/store",
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.folder / "home"),
            "MLFLOW_TRACKING_URI": "",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        return os.environ | PREFECT_ENV | own

    def start_coordinator(self, rounds: int = 0) -> subprocess.Popen[bytes]:
        """Run the campaign in a process of its own, as `python -c`."""
        return self._start([sys.executable, "-c", _RUN, self.campaign_id, str(rounds)])

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start the stock worker of the coordinator's pool."""
        argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "coordinator"]
        return self._start([*argv, "--type", "process"])

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"process-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                argv,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def logs(self) -> str:
        """Return what the processes have printed."""
        return "\n".join(p.read_text() for p in sorted(self.folder.glob("process-*.log")))

    def runs(self, flow_name: str) -> list[FlowRun]:
        """Return the runs of one flow, oldest first, of this campaign's."""
        flows = {f.id for f in self.client.read_flows() if f.name == flow_name}
        found = [r for r in self.client.read_flow_runs(limit=200) if r.flow_id in flows]
        own = [r for r in found if self._is_own(r)]
        return sorted(own, key=lambda r: r.created)

    def _is_own(self, flow_run: FlowRun) -> bool:
        tagged = f"campaign:{self.campaign_id}" in flow_run.tags
        return tagged or flow_run.parameters.get("campaign_id") == self.campaign_id

    def cancel(self, flow_run: FlowRun) -> None:
        """Do what the cancel button of Prefect's page does."""
        self.client.set_flow_run_state(flow_run.id, Cancelling())

    def state(self, run_id: UUID) -> str:
        state = self.client.read_flow_run(run_id).state
        return "" if state is None else state.type.value

    def plan(self, number: int) -> RoundPlan | None:
        try:
            return read_document(self.world.store, keys.plan(self.campaign_id, number), RoundPlan)
        except ObjectMissing:
            return None

    def outcome(self, number: int) -> Outcome | None:
        return read_outcome(self.world.store, self.campaign_id, number)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have all sites answer every plan, and every release evaluated, until the end."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=target, args=(stop,))
            for target in (self._answer_plans, self._evaluate)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _answer_plans(self, stop: threading.Event) -> None:
        number = 1
        while not stop.wait(0.05):
            plan = self.plan(number)
            if plan is None:
                continue
            for site in plan.cohort:
                client_round(
                    self.world.sites[site],
                    self.world.works[site],
                    assembly=self.world.assembly,
                    store=self.world.store,
                    plan=plan,
                )
            number += 1

    def _evaluate(self, stop: threading.Event) -> None:
        with SyncPrefectClient(self.api_url) as client:
            while not stop.wait(0.2):
                found = client.get_scheduled_flow_runs_for_work_pool("evaluation")
                for response in found:
                    flow_run = response.flow_run
                    if flow_run.parameters.get("campaign_id") == self.campaign_id:
                        self._evaluate_one(client, flow_run)

    def _evaluate_one(self, client: SyncPrefectClient, flow_run: FlowRun) -> None:
        number = int(flow_run.parameters["round_number"])
        outcome = self.outcome(number)
        assert outcome is not None
        client.set_flow_run_state(flow_run.id, Pending())
        client.set_flow_run_state(flow_run.id, Running())
        scores = Evaluation(
            adapter_sha256=str(outcome.result_hash),
            holdout_sha256="d" * 64,
            examples=10,
            accuracy=0.5,
        )
        write_document(self.world.store, keys.evaluation(self.campaign_id, number), scores)
        client.set_flow_run_state(flow_run.id, Completed())

    def close(self) -> None:
        """End the processes that were started here, and what they started."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def bench_of(campaign: Campaign, client: SyncPrefectClient, folder: Path) -> Iterator[Bench]:
    """A campaign frozen in a folder, with sites that have ledgers and keys."""
    world = world_of(campaign)
    store = LocalStore(folder / "store")
    for key in world.store.list(""):
        store.put_once(key, world.store.get(key))
    world.store = store
    assert exists(store, keys.campaign(campaign.id))
    bench = Bench(str(client.api_url), folder, world, client)
    try:
        yield bench
    finally:
        bench.close()
