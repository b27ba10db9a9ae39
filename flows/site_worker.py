"""The worker of a site, and of the evaluation: polls one pool, runs allow-listed flows only.

A stock Prefect worker runs what a deployment says: its command, environment, entrypoint, pull
steps. Here the deployment is a label. The *name* of the flow is looked up among flows installed on
this machine, the parameters must fit that flow's signature, and everything else is ignored, so
whoever controls the server can start a session and nothing more. Runs take place in one warm
child (``flows.child_process``), which keeps torch and the base model loaded; starting a run costs
about a second instead of twelve.

What is reported about a run is its Prefect state and, if the child died, a number. The worker
never gives up on an API that is away; the stock one exits after some failures (PrefectHQ/prefect
issue 22638). Some methods of BaseWorker replaced here are private, which is why Prefect is pinned.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.to_thread
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_RESULTS_DEFAULT_SERIALIZER,
    PREFECT_RESULTS_PERSIST_BY_DEFAULT,
    get_current_settings,
    temporary_settings,
)
from prefect.states import Cancelled, Crashed, Pending
from prefect.utilities.engine import propose_state
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)

from fl_core.errors import ServerFailed
from flows.child_process import Limits, WarmChild
from flows.patience import LONGEST_WAIT_S, done_before, repeat, until_done
from flows.prefect_names import WORKER_TYPE
from flows.run_requests import asked_for_more
from flows.warm_child import REFUSED, ChildSetup, Job, RunEnd, show_own_logs
from flows.worker_lock import WorkerLock
from tasks.gateway_client import PROCESS

if TYPE_CHECKING:
    from flows.way_out import WayOut

POLL_S = 0.5
IDLE_POLL_S = 5.0
# A session's watch, and so how late a cancelled one may notice.
WATCH_S = 2.0
# A site without work gives the memory of libraries and model back; the next session starts later
# by the seconds that they take to load.
REST_S = 600.0
TIDY_S = 3600.0
# The coordinator takes a worker for lost that was silent for two of these.
HEARTBEAT_S = 10
# A child whose worker was killed ends at once; this also covers a slow machine.
LOCK_WAIT_S = 15.0
# Not Crashed: the coordinator says that of a session whose site it has not heard of for a while,
# and a link that was cut for a minute may not cost hours of training.
_STOPPED_BY_API = (StateType.CANCELLING, StateType.CANCELLED)

logger = logging.getLogger(__name__)


class WarmWorker(BaseWorker[BaseJobConfiguration, BaseVariables, BaseWorkerResult]):
    """Poll one work pool and run allow-listed flows in one warm child, one at a time.

    Args:
        pool: Name of the work pool; it must exist, a worker may not make one.
        name: Name of this worker, shown on the pool's page.
        child: Where runs take place.
        lock: This pool's lock on this machine.
        way: How a site reaches its coordinator; None: the environment names the API.
    """

    type = WORKER_TYPE
    job_configuration = BaseJobConfiguration
    job_configuration_variables = BaseVariables
    _display_name = "fedloom site"
    _description = "Runs the flows that are installed and allowed at a site, in a warm process."

    def __init__(
        self,
        *,
        pool: str,
        name: str,
        child: WarmChild,
        lock: WorkerLock,
        way: "WayOut | None" = None,
    ) -> None:
        super().__init__(
            work_pool_name=pool,
            name=name,
            limit=1,
            create_pool_if_not_found=False,
            heartbeat_interval_seconds=HEARTBEAT_S,
        )
        self._child = child
        self._lock = lock
        self._way = way
        self._flow_names: dict[UUID, str] = {}
        self._in_hand: UUID | None = None
        self._cancelled = False
        self._stopping = False
        self._last_run_at = 0.0

    async def setup(self) -> None:
        """Make client and task group; unlike BaseWorker, ask nothing of the API yet.

        Raises:
            ServerFailed: No API is configured.
        """
        if not PREFECT_API_URL.value():
            raise ServerFailed("PREFECT_API_URL is not set, expected the coordinator's address")
        self._runs_task_group = anyio.create_task_group()
        self._limiter = anyio.CapacityLimiter(1)
        self._client = get_client()
        await self._exit_stack.enter_async_context(self._client)
        await self._exit_stack.enter_async_context(self._runs_task_group)
        self._last_run_at = anyio.current_time()
        self.is_setup = True

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT; a run in hand is then killed and reported Crashed.

        Raises:
            ServerFailed: The gateway refuses the versions here, or the child cannot be started.
        """
        stopped = anyio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        if self._way is not None and not await done_before(stopped, self._way.greet()):
            return
        ensure = anyio.to_thread.run_sync(self._child.ensure, abandon_on_cancel=True)
        if not await done_before(stopped, ensure):
            return
        async with self:
            async with anyio.create_task_group() as loops:
                loops.start_soon(self._start_loops, loops)
                await stopped.wait()
                logger.info("worker stops pool=%s", self._work_pool_name)
                loops.cancel_scope.cancel()
            await self._drop_run_in_hand()

    async def _start_loops(self, loops: anyio.abc.TaskGroup) -> None:
        await until_done(self._connect, patient=True)
        await self._close_left_over()
        logger.info("worker ready pool=%s name=%s", self._work_pool_name, self.name)
        beat_s = self.heartbeat_interval_seconds
        # Soon after the API is back, or the coordinator would take its absence for this worker's.
        loops.start_soon(repeat, self._sync_and_initialize, beat_s, beat_s / 2)
        loops.start_soon(repeat, self._poll, 0.0)
        loops.start_soon(repeat, self._watch, WATCH_S)
        if self._way is not None:
            loops.start_soon(repeat, self._way.tidy, TIDY_S)

    async def _connect(self) -> None:
        await self._sync_and_initialize()
        if not self._has_successfully_synced:
            raise httpx.ConnectError(f"work pool {self._work_pool_name!r} does not exist yet")

    async def _close_left_over(self) -> None:
        run_id = self._lock.read()
        if run_id is not None:
            logger.warning("run left over from an earlier worker is closed run=%s", run_id)
            await self._close(run_id, "worker lost")
        self._lock.write(None)

    async def _worker_metadata(self) -> None:
        """Name no other package: BaseWorker imports each that is made for Prefect, to list it."""

    async def _poll(self) -> None:
        await anyio.sleep(self._poll_interval())
        idle_s = anyio.current_time() - self._last_run_at
        if self._way is not None and self._in_hand is None and idle_s > REST_S and self._child.pid:
            logger.info("nothing to do for long, the warm process rests pool=%s", self.name)
            await anyio.to_thread.run_sync(self._child.kill)
        # With a run in hand nothing else could start, so the API is not asked.
        if self._in_hand is not None:
            return
        try:
            await self.get_and_submit_flow_runs()
        except httpx.HTTPStatusError as error:
            if self._way is not None and error.response.status_code == HTTPStatus.CONFLICT:
                await self._way.greet_again()
            raise

    def _poll_interval(self) -> float:
        # Answers within .5 s for a minute after a run, then ever more slowly.
        idle_s = anyio.current_time() - self._last_run_at
        return min(IDLE_POLL_S, max(POLL_S, idle_s / 120))

    async def _watch(self) -> None:
        """Kill the child when the API says that its run is to end."""
        run_id = self._in_hand
        if run_id is None:
            return
        try:
            state = (await self.client.read_flow_run(run_id)).state
        except ObjectNotFound:
            state = None
        if (state is None or state.type in _STOPPED_BY_API) and run_id == self._in_hand:
            self._cancelled = True
            await anyio.to_thread.run_sync(self._child.kill)

    async def _drop_run_in_hand(self) -> None:
        self._stopping = True
        await anyio.to_thread.run_sync(self._child.kill)
        with anyio.move_on_after(LONGEST_WAIT_S):
            while self._in_hand is not None:  # noqa: ASYNC110 -- at most once in a worker's life
                await anyio.sleep(0.05)
        if self._runs_task_group is not None:
            self._runs_task_group.cancel_scope.cancel()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Claim a run, execute it, report how the child ended; replaces ten API calls by three."""
        self._in_hand = flow_run.id
        if self._way is not None:
            self._way.egress.run_in_hand = str(flow_run.id)
        self._cancelled = False
        try:
            # Before the claim: a run that is claimed and not noted would keep the pool's slot.
            self._lock.write(flow_run.id)
            asked = await asked_for_more(self.client, flow_run)
            if asked:
                self._report(flow_run, RunEnd.ASKS_FOR_MORE, f": {', '.join(asked)}")
                await self._close(flow_run.id, f"status {RunEnd.ASKS_FOR_MORE}")
            elif await self._claim(flow_run.id):
                result = await self.run(flow_run, self.job_configuration())
                if result.status_code != RunEnd.OVER or self._cancelled:
                    await self._close(flow_run.id, f"status {result.status_code}")
            self._lock.write(None)
            self._last_run_at = anyio.current_time()
            self._in_hand = None
            # Be warm before the next run may come.
            await anyio.to_thread.run_sync(self._rewarm)
        finally:
            self._in_hand = None
            self._last_run_at = anyio.current_time()
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)

    def _report(self, flow_run: FlowRun, end: RunEnd, detail: str = "") -> None:
        reason = REFUSED[end] + detail
        logger.error("run refused run=%s reason=%s", flow_run.id, reason)
        if self._way is not None:
            self._way.record.kept("RUN", f"/flow_runs/{flow_run.id}", reason=reason)

    async def _claim(self, run_id: UUID) -> bool:
        try:
            state = await propose_state(self.client, Pending(), flow_run_id=run_id)
        except Abort:
            return False
        except httpx.HTTPError:
            # The claim may have arrived although its answer did not: then the run is Pending and
            # nobody runs it. Closed, it is sent again under another attempt.
            await self._close(run_id, "claim lost")
            return False
        return state.is_pending()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> BaseWorkerResult:
        """Execute one run in the child; ``configuration`` comes from the server and is ignored."""
        del configuration
        if task_status is not None:
            task_status.started(os.getpid())
        try:
            name = await until_done(lambda: self._flow_name(flow_run.flow_id))
        except (ObjectNotFound, httpx.HTTPStatusError):
            name = ""
        job = Job(
            flow_name=name,
            flow_run=flow_run.model_dump_json(),
            parameters=flow_run.parameters,
        )
        status = await anyio.to_thread.run_sync(self._child.run, job)
        if status in REFUSED:
            self._report(flow_run, RunEnd(status))
        logger.info("run ended run=%s flow=%s status=%d", flow_run.id, name, status)
        return BaseWorkerResult(identifier=str(flow_run.id), status_code=status)

    async def _flow_name(self, flow_id: UUID) -> str:
        if flow_id not in self._flow_names:
            self._flow_names[flow_id] = (await self.client.read_flow(flow_id)).name
        return self._flow_names[flow_id]

    async def _close(self, run_id: UUID, reason: str) -> None:
        """Give a run without a process its last state; no text but a fixed reason."""
        try:
            await until_done(lambda: self._propose_last_state(run_id, reason))
        except (Abort, ObjectNotFound):
            logger.info("run was closed by the api run=%s", run_id)
        except httpx.HTTPStatusError as error:
            logger.warning("run stays open run=%s status=%d", run_id, error.response.status_code)

    async def _propose_last_state(self, run_id: UUID, reason: str) -> None:
        state = (await self.client.read_flow_run(run_id)).state
        if state is None or state.is_final():
            return
        last: State[Any] = Crashed(message=reason)
        if state.type == StateType.CANCELLING:
            last = Cancelled(message=reason)
        await propose_state(self.client, last, flow_run_id=run_id)

    def _rewarm(self) -> None:
        if self._stopping:
            return
        try:
            self._child.ensure()
        except ServerFailed:
            # Said again with the next run, which then ends Crashed; the cause may be gone by then.
            logger.exception("warm process does not start pool=%s", self._work_pool_name)


def run_worker(  # noqa: PLR0913  the settings of a process, by name
    *,
    pool: str,
    allowed: Mapping[str, str],
    preload: str | None,
    name: str,
    api_logging: bool,
    hard_timeout_s: float | None = None,
    memory_bytes: int | None = None,
    way: "WayOut | None" = None,
) -> None:
    """Serve one work pool in this process until SIGTERM or SIGINT.

    Args:
        pool: Name of the work pool.
        allowed: Flow name to ``module.attribute`` of the flow installed here.
        preload: ``module.attribute`` of a callable that the child runs once, or None.
        name: Name of the worker.
        api_logging: False at a site: no log line and no text of a state leaves (SOUNDNESS 18).
        hard_timeout_s: Seconds after which a run is killed; None is unbounded.
        memory_bytes: Resident memory above which a run is killed; None is unbounded.
        way: A site's way through its gateway, open; None: the environment names the API.

    Raises:
        ServerFailed: No API address, versions that the gateway refuses, another worker on the
            pool, or a child that does not start.
    """
    show_own_logs()
    settings = {
        PREFECT_LOGGING_TO_API_ENABLED: api_logging,
        PREFECT_RESULTS_PERSIST_BY_DEFAULT: False,
        PREFECT_RESULTS_DEFAULT_SERIALIZER: "json",
        # The worker's own loops repeat for ever; long waits inside a call would only delay them.
        PREFECT_CLIENT_MAX_RETRIES: 2,
    }
    with temporary_settings(settings):
        lock = WorkerLock(_lock_path(pool), wait_s=LOCK_WAIT_S)
        setup = ChildSetup(allowed=dict(allowed), preload=preload, api_logging=api_logging)
        child = WarmChild(
            setup,
            environment=_environment(),
            keep_open=(lock.descriptor,),
            limits=Limits(hard_timeout_s, memory_bytes),
        )
        worker = WarmWorker(pool=pool, name=name, child=child, lock=lock, way=way)
        try:
            asyncio.run(worker.serve())
        finally:
            child.kill()
            lock.release()


def _lock_path(pool: str) -> Path:
    return Path(PREFECT_HOME.value()) / "fedloom" / f"{pool}.lock"


def _environment() -> dict[str, str]:
    """The child's environment: this one, with the settings in force here, secrets included."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    # A session outlives a restart of the server, so its client waits longer than the worker's.
    patient = {"PREFECT_CLIENT_MAX_RETRIES": "6", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    return {**os.environ, **settings, **patient, PROCESS: "session"}
