"""One home folder's servers: PostgreSQL, S3, Prefect, MLflow, and the gateway for sites.

``start`` brings everything up and returns when it is healthy, ``connect`` finds a stack that runs
already, ``stop`` ends it. Where some servers run and others ended, ``start`` starts those that are
missing and leaves the rest, and every worker, alone. Where no server is left, also after SIGKILL or
a lost machine, it ends what is left over and starts again over the same data. Several stacks run
side by side in several homes.

Layout of a home: ``stack.json`` (ports, keys), ``run/`` (process records, workers' logs),
``postgres/``, ``s3/``, ``prefect/``, ``mlflow/``, ``gateway/`` (data and ``server.log`` each),
``coordinator/``, ``evaluation/``, ``sites/<name>/``, ``holdouts/``.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import CampaignError, ServerFailed
from flows.home_upgrade import upgrade_stack_file
from flows.local_gateway import (
    GatewayFiles,
    gateway_answers,
    local_url,
    prepare_gateway,
    start_gateway,
)
from flows.local_sites import follow_gateway
from flows.processes import (
    ServerProcess,
    answers,
    children,
    ended_with_this_process,
    is_alive,
    last_lines,
    require_free_ports,
    stop_all,
)
from flows.servers import S3Access, start_mlflow, start_prefect, start_seaweed
from flows.stack_databases import database_urls, running_database_urls
from flows.stack_file import (
    BUCKET,
    MLFLOW_BUCKET,
    StackFile,
    Stated,
    forget_process,
    is_first_format,
    prepared_stack_file,
    read_stack_file,
    record_process,
    recorded_processes,
    stack_path,
    write_stack_file,
)

DEFAULT_HOME = Path(".fedloom")
SERVERS = ("postgres", "s3", "prefect", "mlflow", "gateway")
"""Names of the servers; every other process of a stack is a worker."""

# Sites go first, then their door, then what stands behind it, the database last.
_ENDING = (("gateway",), ("prefect", "mlflow", "s3"), ("postgres",))

_HEALTH_PATHS = {"s3": "/healthz", "prefect": "/api/health", "mlflow": "/health"}

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack.

    Attributes:
        home: Its home folder, absolute.
        file: Ports and keys.
        seconds: Time from the call of ``start`` until each server was healthy; empty for a stack
            that was found running.
    """

    home: Path
    file: StackFile
    seconds: Mapping[str, float]

    @property
    def prefect_url(self) -> str:
        """Prefect's UI."""
        return self.file.prefect_url

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and tracking URI."""
        return self.file.mlflow_url

    @property
    def s3_endpoint(self) -> str:
        """The S3 endpoint."""
        return self.file.s3_endpoint

    @property
    def gateway_url(self) -> str:
        """The sites' door, as this machine reaches it."""
        return local_url(self.file)

    @property
    def invite(self) -> Path:
        """The file that sites' operators are given."""
        return GatewayFiles(self.home).invite

    def processes(self) -> dict[str, ServerProcess]:
        """All processes of the stack by name, as recorded now."""
        return recorded_processes(self.home)


def start(
    home: Path, *, stated: Stated | None = None, on_progress: OnProgress | None = None
) -> Stack:
    """Start the servers of a home that do not run and answer there already.

    Args:
        home: Home folder; made when absent.
        stated: Ports and names from now on; None keeps those of before.
        on_progress: Told what becomes healthy.

    Raises:
        CampaignError: The gateway cannot have the names that are stated, or the stack runs
            already and otherwise than stated.
        PortInUse: A stated port, or one of before, has another listener.
        ServerFailed: A server did not start; the others that were starting are stopped again.
    """
    home = home.resolve()
    for folder in ("run", "coordinator/prefect", "holdouts"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    tell = on_progress or (lambda _: None)
    with _exclusive(home):
        missing = _missing_servers(home)
        upgrade_stack_file(home)
        if missing is None:
            _end_recorded(home)
            missing = SERVERS
        else:
            running = _require_as_it_runs(home, stated or Stated())
            if not missing:
                return running
            _end_servers(home, missing)
        file = prepared_stack_file(home, stated or Stated(), keep_ports="s3" not in missing)
        _require_ports(home, file, missing)
        prepare_gateway(home, file, tell=tell)
        write_stack_file(home, file)
        for site in follow_gateway(home, file):
            tell(f"site {site} takes the gateway's new invite")
        return Stack(home, file, _start_servers(home, file, missing, tell))


def any_running(home: Path) -> bool:
    """Whether a server of a home runs, so that a start adds to it."""
    return _missing_servers(home.resolve()) is not None


def _missing_servers(home: Path) -> Sequence[str] | None:
    """Return which servers do not run or do not answer; None where none does, or all are old."""
    file = None if is_first_format(home) else read_stack_file(home)
    if file is None:
        return None
    expected = _expected(home, SERVERS)
    missing = [name for name in expected if not _serves(home, file, name)]
    return None if missing == expected else missing


def _expected(home: Path, needed: Sequence[str]) -> list[str]:
    # Where PostgreSQL is somebody else's, there is no record of it.
    return [name for name in needed if name != "postgres" or name in recorded_processes(home)]


def _serves(home: Path, file: StackFile, name: str) -> bool:
    server = recorded_processes(home).get(name)
    if server is None or not is_alive(server):
        return False
    if name == "gateway":
        return gateway_answers(home, file)
    return name not in _HEALTH_PATHS or answers(server.url + _HEALTH_PATHS[name])


def _end_servers(home: Path, names: Sequence[str]) -> None:
    """End what is left of servers that are started again."""
    left = [each for name, each in recorded_processes(home).items() if name in names]
    stop_all(left)
    for each in left:
        forget_process(home, each)


def _require_as_it_runs(home: Path, stated: Stated) -> Stack:
    file = prepared_stack_file(home, Stated(), keep_ports=True)
    other = [name for name, value in stated.changes().items() if getattr(file, name) != value]
    if other:
        raise CampaignError(
            f"the stack over {home} runs with {_shown(file, other)}, expected what is "
            f"stated now; `fedloom down --home {home}` first"
        )
    return Stack(home, file, {})


def _shown(file: StackFile, names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {getattr(file, name) or 'none'}" for name in names)


def _require_ports(home: Path, file: StackFile, names: Sequence[str]) -> None:
    remedy = f"stop what listens there, or state another port (it is in {stack_path(home)})"
    at_gateway = "stop what listens there: every site names this port in its config"
    ports = {
        "prefect": (file.prefect_port, remedy),
        "mlflow": (file.mlflow_port, remedy),
        "s3": (file.s3_ports["s3"], remedy),
        "gateway": (file.gateway_port, at_gateway),
    }
    for name in [name for name in ports if name in names]:
        port, what_to_do = ports[name]
        require_free_ports(name, [port], remedy=what_to_do)


def _start_servers(
    home: Path, file: StackFile, names: Sequence[str], tell: OnProgress
) -> dict[str, float]:
    began = time.monotonic()
    seconds: dict[str, float] = {}

    def up(server: ServerProcess) -> None:
        record_process(home, server)
        seconds[server.name] = round(time.monotonic() - began, 1)
        tell(f"{server.name} is up after {seconds[server.name]:.1f} s")

    def store() -> None:
        up(_s3(home, file))
        _make_buckets(file)

    def servers(pool: ThreadPoolExecutor) -> Iterator[Future[None]]:
        if "s3" in names:
            yield pool.submit(store)
        if "gateway" in names:
            # It looks for what stands behind it again and again, so it need not wait.
            yield pool.submit(lambda: up(start_gateway(home, file)))
        urls = database_urls(home, up) if "postgres" in names else running_database_urls(home)
        if "prefect" in names:
            yield pool.submit(lambda: up(_prefect(home, file, urls("asyncpg"))))
        if "mlflow" in names:
            yield pool.submit(lambda: up(_mlflow(home, file, urls("psycopg2"))))

    _all_or_none(servers)
    return seconds


def _all_or_none(submit_to: Callable[[ThreadPoolExecutor], Iterator[Future[None]]]) -> None:
    """Start processes in threads; when one fails, or Ctrl-C comes, end all of them."""
    before = {each.pid for each in children()}
    futures: list[Future[None]] = []
    with ended_with_this_process(), ThreadPoolExecutor(max_workers=4) as pool:
        try:
            futures.extend(submit_to(pool))
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # A thread may be about to start its process, or wait for one that others need.
            while wait(futures, timeout=0.1).not_done:
                stop_all([each for each in children() if each.pid not in before])
            stop_all([each for each in children() if each.pid not in before])
            raise


def _s3(home: Path, file: StackFile) -> ServerProcess:
    keys = file.coordinator
    return start_seaweed(
        home / "s3",
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        ports=file.seaweed_ports,
        identities=file.identities(),
    )


def _prefect(home: Path, file: StackFile, database_url: str) -> ServerProcess:
    return start_prefect(home / "prefect", database_url=database_url, port=file.prefect_port)


def _mlflow(home: Path, file: StackFile, backend_uri: str) -> ServerProcess:
    keys = file.coordinator
    return start_mlflow(
        home / "mlflow",
        backend_uri=backend_uri,
        artifacts_uri=f"s3://{MLFLOW_BUCKET}",
        s3=S3Access(file.s3_endpoint, keys.access_key, keys.secret_key),
        port=file.mlflow_port,
    )


def _make_buckets(file: StackFile) -> None:
    # Not at the top: boto3 takes a third of a second that `fedloom --help` need not wait for.
    from tasks.object_store import S3Location, ensure_bucket
    from tasks.object_store import connect as connect_store

    keys = file.coordinator
    for bucket in (BUCKET, MLFLOW_BUCKET):
        location = S3Location(
            bucket,
            endpoint=file.s3_endpoint,
            access_key=keys.access_key,
            secret_key=keys.secret_key,
        )
        ensure_bucket(connect_store(location))


def connect(home: Path, *, needed: Sequence[str] = SERVERS) -> Stack | None:
    """The stack that runs over a home, or None when a needed server is not running and healthy.

    Args:
        home: Home folder.
        needed: Names of the servers that must be healthy; a campaign goes on without MLflow.

    Raises:
        ObjectCorrupt: ``stack.json`` is not readable as such.
    """
    home = home.resolve()
    # One of an earlier fedloom has no gateway; its next start takes it over.
    file = None if is_first_format(home) else read_stack_file(home)
    if file is None:
        return None
    is_up = all(_serves(home, file, name) for name in _expected(home, needed))
    return Stack(home, file, {}) if is_up else None


def stop(home: Path, *, on_progress: OnProgress | None = None) -> list[str]:
    """End everything that runs for a home: workers, the gateway, servers, PostgreSQL last.

    Returns:
        Names of the processes that were running; a second call returns an empty list.
    """
    home = home.resolve()
    if not home.is_dir():
        return []
    with _exclusive(home):
        return _end_recorded(home, on_progress)


def _end_recorded(home: Path, on_progress: OnProgress | None = None) -> list[str]:
    processes = recorded_processes(home)
    workers = [each for name, each in processes.items() if name not in SERVERS]
    servers = [[processes[name] for name in names if name in processes] for names in _ENDING]
    ended = []
    for group in (workers, *servers):
        running = [each.name for each in group if is_alive(each)]
        stop_all(group)
        for each in group:
            forget_process(home, each)
        if running and on_progress is not None:
            on_progress(f"stopped {', '.join(running)}")
        ended += running
    return ended


def dead_processes(stack: Stack) -> list[ServerProcess]:
    """Processes of a stack that ended although nobody stopped them."""
    return [each for each in stack.processes().values() if not is_alive(each)]


def require_alive(stack: Stack) -> None:
    """Refuse to go on when a process of the stack has ended.

    Raises:
        ServerFailed: Names the process and the end of its log.
    """
    for each in dead_processes(stack):
        raise ServerFailed(
            f"the {each.name} process ended, expected it to run until the stack is stopped; "
            f"its log ends with: {last_lines(each.log_path)}",
            hint=f"the whole log is {each.log_path}",
        )


@contextlib.contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """One start or stop at a time over a home; the lock ends with its process."""
    (home / "run").mkdir(exist_ok=True)
    with (home / "run" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerFailed(
                f"another process starts or stops the stack in {home}, expected only one; "
                "wait until it is done",
            ) from None
        yield
