"""The site's worker against a real Prefect server: what it runs, refuses, survives and says."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.filters import LogFilter
from prefect.states import Cancelling
from worker_stack import Stack, Worker, is_alive, wait_for

from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect
from flows.warm_child import RunEnd

CANARY = "patient-4711-canary"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("prefect")
    with ended_with_this_process():
        stack = Stack(folder, start_prefect(folder / "server"))
        try:
            yield stack
        finally:
            stack.close()
            stop(stack.server)


@pytest.fixture(scope="module")
def shared(stack: Stack) -> Worker:
    """One worker for the tests that leave it as it was."""
    stack.make_pool("site-shared")
    return stack.start_worker("site-shared", preload="worker_flows.preloaded")


def _pid(path: Path) -> int:
    return int(wait_for(lambda: path.exists() and path.read_text(), what=f"writing {path.name}"))


def test_run_completes_in_the_preloaded_child(stack: Stack, shared: Worker, tmp_path: Path) -> None:
    path = tmp_path / "work"

    run = stack.create_run(shared.pool, "work", {"path": str(path), "seconds": 0.2})

    assert stack.final_state(run)[0] == "COMPLETED"
    assert _pid(path) == _pid(shared.home / "preloaded")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"entrypoint": "CODE:evil"}, id="entrypoint"),
        pytest.param({"path": "FOLDER"}, id="path"),
        pytest.param(
            {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "TOUCH"}}]},
            id="pull step",
        ),
        pytest.param({"job_variables": {"command": "TOUCH"}}, id="shell command"),
        pytest.param({"job_variables": {"env": {"PYTHONSTARTUP": "CODE"}}}, id="environment"),
        pytest.param({"job_variables": {"hard_timeout_s": 0.001}}, id="time limit"),
    ],
)
def test_run_that_asks_for_more_than_a_flow_is_refused_and_reported(
    stack: Stack, shared: Worker, tmp_path: Path, asked: dict[str, object]
) -> None:
    planted, honest = tmp_path / "planted", tmp_path / "honest"
    code = tmp_path / "evil.py"
    code.write_text(
        f"from pathlib import Path\nPath({str(planted)!r}).write_text('module')\n"
        "from prefect import flow\n@flow(name='touch')\ndef evil(path: str):\n    pass\n"
    )
    words = {"CODE": str(code), "FOLDER": str(tmp_path), "TOUCH": f"touch {planted}"}
    plain = json.dumps(asked)
    for word, value in words.items():
        plain = plain.replace(word, value)

    run = stack.create_run(
        shared.pool, "touch", {"path": str(honest)}, title="hostile", **json.loads(plain)
    )

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.ASKS_FOR_MORE}")
    assert not honest.exists()
    assert not planted.exists()
    assert f"run refused run={run.id} reason=names code" in shared.log.read_text()


def test_variables_of_a_single_run_are_refused_too(
    stack: Stack, shared: Worker, tmp_path: Path
) -> None:
    path = tmp_path / "path"
    honest = stack.create_run(shared.pool, "touch", {"path": str(path)})
    assert stack.final_state(honest)[0] == "COMPLETED"
    path.unlink()

    run = stack.client.create_flow_run_from_deployment(
        honest.deployment_id,
        parameters={"path": str(path)},
        job_variables={"env": {"LD_PRELOAD": "/planted.so"}},
    )

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.ASKS_FOR_MORE}")
    assert not path.exists()


def test_flow_that_is_not_allowed_ends_crashed_with_a_code(stack: Stack, shared: Worker) -> None:
    run = stack.create_run(shared.pool, "steal-rows", {})

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.UNKNOWN_FLOW}")


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"number": 1}, id="missing"),
        pytest.param({"path": "PATH", "number": 1, "more": 1}, id="unknown"),
        pytest.param({"path": "PATH", "number": "many"}, id="type"),
        pytest.param({"path": "PATH", "number": None}, id="null"),
        pytest.param({"path": "PATH", "number": [1]}, id="nested"),
        pytest.param({"path": "PATH", "number": {"$ref": "block"}}, id="block reference"),
    ],
)
def test_bad_parameters_are_refused_before_the_flow_runs(
    stack: Stack, shared: Worker, tmp_path: Path, parameters: dict[str, object]
) -> None:
    path = tmp_path / "count"
    given = {k: str(path) if v == "PATH" else v for k, v in parameters.items()}

    run = stack.create_run(shared.pool, "count", given)

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.BAD_PARAMETERS}")
    assert not path.exists()


@pytest.mark.parametrize(
    "flow_name",
    [
        "fail-in-flow",
        "fail-in-task",
        "time-out-in-flow",
        "time-out-in-task",
        "interrupted",
        "exit",
    ],
)
def test_no_text_of_an_exception_leaves_the_site(
    stack: Stack, shared: Worker, tmp_path: Path, flow_name: str
) -> None:
    # The parameter itself reaches the server; what the flow makes of it must not.
    texts = (f"row {CANARY}", "Traceback", "ValueError", "TimeoutError", "KeyboardInterrupt")
    before = {text: stack.database_bytes().count(text.encode()) for text in texts}
    run = stack.create_run(shared.pool, flow_name, {"row": CANARY})
    after = stack.create_run(shared.pool, "touch", {"path": str(tmp_path / "after")})

    assert stack.final_state(run)[0] in {"FAILED", "CRASHED"}
    assert stack.final_state(after)[0] == "COMPLETED"
    # Task states travel as events and are stored with a delay.
    time.sleep(3)
    stored = stack.database_bytes()
    assert {text: stored.count(text.encode()) for text in texts} == before
    assert f"row {CANARY}" in shared.log.read_text() or flow_name in {"interrupted", "exit"}


def test_worker_of_the_evaluation_says_what_failed(stack: Stack) -> None:
    # Also the control of the test above: with texts allowed, the search does find them.
    stack.make_pool("evaluation")
    worker = stack.start_worker("evaluation", api_logging=True)
    runs = [
        stack.create_run(worker.pool, name, {"row": f"loud-{name}"})
        for name in ("fail-in-flow", "fail-in-task", "time-out-in-flow", "time-out-in-task")
    ]

    messages = [stack.final_state(run)[1] for run in runs]

    assert [
        f"row loud-{run.parameters['row'][5:]}" in (m or "")
        for run, m in zip(runs, messages, strict=True)
    ] == [True] * 4
    wait_for(
        lambda: (
            b"Task run encountered an exception ValueError: bad row loud-" in stack.database_bytes()
        ),
        what="storing the state of the task",
    )
    worker.stop()


def test_nothing_is_logged_to_the_api_nor_written_as_a_result(
    stack: Stack, shared: Worker, tmp_path: Path
) -> None:
    run = stack.create_run(shared.pool, "fail-in-task", {"row": CANARY})

    stack.final_state(run)

    lines = stack.client.read_logs(
        LogFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
    )
    assert [line.message for line in lines] == []
    files = [path for path in shared.home.rglob("*") if path.is_file()]
    kept = {path.name for path in files}
    assert kept <= {"preloaded", "site-shared.lock", "profiles.toml", "memo_store.toml"}
    for path in files:
        assert CANARY.encode() not in path.read_bytes()


def test_killed_child_is_reported_by_status_and_the_next_run_completes(
    stack: Stack, shared: Worker, tmp_path: Path
) -> None:
    path = tmp_path / "work"
    run = stack.create_run(shared.pool, "work", {"path": str(path), "seconds": 60})
    os.kill(_pid(path), signal.SIGKILL)
    after = stack.create_run(shared.pool, "touch", {"path": str(tmp_path / "after")})

    assert stack.final_state(run) == ("CRASHED", f"status {-signal.SIGKILL}")
    assert stack.final_state(after)[0] == "COMPLETED"
    assert shared.process.poll() is None


def test_cancelled_run_loses_its_child(stack: Stack, shared: Worker, tmp_path: Path) -> None:
    path = tmp_path / "work"
    run = stack.create_run(shared.pool, "work", {"path": str(path), "seconds": 60})
    pid = _pid(path)

    stack.client.set_flow_run_state(run.id, Cancelling())

    assert stack.final_state(run)[0] == "CANCELLED"
    assert not is_alive(pid)


def test_run_that_takes_too_much_memory_costs_one_attempt_and_not_the_worker(
    stack: Stack, tmp_path: Path
) -> None:
    stack.make_pool("site-memory")
    worker = stack.start_worker("site-memory", memory_bytes=700 << 20)
    path = tmp_path / "hold"

    run = stack.create_run(worker.pool, "hold", {"path": str(path), "megabytes": 1200})
    after = stack.create_run(worker.pool, "touch", {"path": str(tmp_path / "after")})

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.OUT_OF_MEMORY}")
    assert stack.final_state(after)[0] == "COMPLETED"
    assert "raise memory_gb in site.toml" in worker.log.read_text()
    worker.stop()
    assert worker.process.returncode == 0


def test_child_offers_itself_to_the_out_of_memory_killer(
    stack: Stack, shared: Worker, tmp_path: Path
) -> None:
    path = tmp_path / "work"

    run = stack.create_run(shared.pool, "work", {"path": str(path), "seconds": 0.1})

    assert stack.final_state(run)[0] == "COMPLETED"
    worker, child = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (shared.process.pid, _pid(path))
    )
    assert child > worker


def test_hard_timeout_kills_the_child(stack: Stack, tmp_path: Path) -> None:
    stack.make_pool("site-timeout")
    worker = stack.start_worker("site-timeout", hard_timeout_s=1.5)
    path = tmp_path / "work"

    run = stack.create_run(worker.pool, "work", {"path": str(path), "seconds": 60})
    after = stack.create_run(worker.pool, "touch", {"path": str(tmp_path / "after")})

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.TIMED_OUT}")
    assert stack.final_state(after)[0] == "COMPLETED"
    worker.stop()
    assert worker.process.returncode == 0


def test_killed_worker_takes_its_child_along_and_the_next_worker_closes_the_run(
    stack: Stack, tmp_path: Path
) -> None:
    stack.make_pool("site-killed")
    worker = stack.start_worker("site-killed")
    path = tmp_path / "work"
    run = stack.create_run(worker.pool, "work", {"path": str(path), "seconds": 120})
    pid = _pid(path)

    worker.process.kill()
    worker.process.wait()
    again = stack.start_worker("site-killed")

    wait_for(lambda: not is_alive(pid), what="the end of the child", limit_s=20)
    assert stack.final_state(run) == ("CRASHED", "worker lost")
    after = stack.create_run(worker.pool, "touch", {"path": str(tmp_path / "after")})
    assert stack.final_state(after)[0] == "COMPLETED"
    again.stop()


def test_stopped_worker_reports_its_run(stack: Stack, tmp_path: Path) -> None:
    stack.make_pool("site-stopped")
    worker = stack.start_worker("site-stopped")
    path = tmp_path / "work"
    run = stack.create_run(worker.pool, "work", {"path": str(path), "seconds": 120})
    pid = _pid(path)

    worker.stop()

    assert worker.process.returncode == 0
    assert not is_alive(pid)
    assert stack.final_state(run) == ("CRASHED", f"status {-signal.SIGKILL}")


def test_second_worker_of_a_pool_is_refused_while_the_first_lives(
    stack: Stack, shared: Worker
) -> None:
    second = stack.start_worker(shared.pool)

    assert second.process.wait(60) == 1
    assert "another worker holds" in second.log.read_text()


def test_worker_that_cannot_preload_ends_and_says_so(stack: Stack) -> None:
    worker = stack.start_worker("site-broken", preload="worker_flows.absent")

    assert worker.process.wait(60) == 1
    assert "before it was ready" in worker.log.read_text()


def test_worker_waits_for_its_pool(stack: Stack, tmp_path: Path) -> None:
    worker = stack.start_worker("site-later")
    wait_for(lambda: "does not answer" in worker.log.read_text(), what="the first refusal")

    stack.make_pool("site-later")
    run = stack.create_run(worker.pool, "touch", {"path": str(tmp_path / "path")})

    assert stack.final_state(run)[0] == "COMPLETED"
    worker.stop()


def test_run_and_worker_survive_a_restart_of_the_server(stack: Stack, tmp_path: Path) -> None:
    stack.make_pool("site-restart")
    worker = stack.start_worker("site-restart")
    path = tmp_path / "work"
    run = stack.create_run(worker.pool, "work", {"path": str(path), "seconds": 6})
    pid = _pid(path)
    port = int(stack.server.url.rsplit(":", 1)[1])

    os.kill(stack.server.pid, signal.SIGKILL)
    stop(stack.server)
    early = stack.start_worker("site-early")
    wait_for(lambda: Path(f"{path}.done").exists(), what="the end of the work")
    stack.server = start_prefect(stack.folder / "server", port=port)

    stack.make_pool("site-early")
    assert stack.final_state(run, limit_s=120)[0] == "COMPLETED"
    for pool in (worker.pool, early.pool):
        after = stack.create_run(pool, "touch", {"path": str(tmp_path / f"after-{pool}")})
        assert stack.final_state(after, limit_s=120)[0] == "COMPLETED"
    assert is_alive(pid)
    worker.stop()
    early.stop()


def test_child_refuses_to_start_while_api_logging_is_on() -> None:
    from fl_core.errors import ServerFailed
    from flows.child_process import WarmChild
    from flows.warm_child import ChildSetup

    setup = ChildSetup(allowed={}, preload=None, api_logging=False)
    child = WarmChild(
        setup, environment=dict(os.environ) | {"PREFECT_LOGGING_TO_API_ENABLED": "true"}
    )

    with pytest.raises(ServerFailed, match=f"status {RunEnd.NOT_STARTED}"):
        child.ensure()
