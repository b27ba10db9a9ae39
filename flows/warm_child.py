"""The process in which a site's flow runs take place.

It imports what is slow (torch, the base model) once, then takes one job after the other as lines
of JSON on its standard input, and answers each with one line on what was its standard output.
JSON and not pickle, so nothing that arrives can name code; the flow's name is looked up in an
allow-list that the site's own worker gave at the start. The process can be killed at any time,
and ends by itself when its input closes, also in the middle of a run: then its worker is gone, and
a restarted worker must not train beside it.

At a site no text leaves with a state: Prefect puts an exception's text into the state of a run,
and an exception's text may hold a row (SOUNDNESS 18). The texts are dropped in code, because a
setting could be forgotten. Private names of Prefect are used for it; Prefect is pinned, and a test
against a real server fails when an upgrade moves them.
"""

import contextlib
import functools
import importlib
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import JsonValue

from fl_core.artifacts.documents import Document

logger = logging.getLogger(__name__)

Plain = str | int | float | bool | None


class RunEnd(IntEnum):
    """How a job ended; the only thing that is ever said about it. Negative numbers are signals."""

    OVER = 0  # the engine has reported the run's own final state
    ENGINE_FAILED = 70
    ASKS_FOR_MORE = 76  # a deployment that names code, commands or environment
    UNKNOWN_FLOW = 77
    BAD_PARAMETERS = 78
    NOT_STARTED = 79
    TIMED_OUT = 124
    OUT_OF_MEMORY = 137


REFUSED = {
    RunEnd.ASKS_FOR_MORE: "names code, a command, an environment or a path",
    RunEnd.UNKNOWN_FLOW: "asks for a flow that is not allowed",
    RunEnd.BAD_PARAMETERS: "asks with parameters that the flow does not take",
}
"""Ends of runs that were refused before anything ran, in words for the operator."""


class ChildSetup(Document):
    """What the worker tells the process first.

    Attributes:
        allowed: Flow name to ``module.attribute`` of code installed here.
        preload: ``module.attribute`` of a callable without arguments, run once, or None.
        api_logging: Whether log lines and the text of states may go to the Prefect API.
    """

    allowed: dict[str, str]
    preload: str | None = None
    api_logging: bool


class Job(Document):
    """One flow run to execute.

    Attributes:
        flow_name: Name of the flow, as the API tells it.
        flow_run: The flow run as JSON, as the API tells it.
        parameters: Parameters of the run, not checked yet.
    """

    flow_name: str
    flow_run: str
    parameters: dict[str, JsonValue]


def main() -> None:
    """Serve jobs from standard input until it closes."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    # Whatever the flows print must not be taken for an answer.
    os.dup2(2, 1)
    lines = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    show_own_logs()
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines, jobs), daemon=True).start()

    offer_to_oom_killer()
    setup = ChildSetup.model_validate_json(jobs.get())
    prepare(setup)
    _answer(answers, RunEnd.OVER)
    while True:
        job = Job.model_validate_json(jobs.get())
        _answer(answers, run_job(job, allowed=setup.allowed))


def offer_to_oom_killer() -> None:
    """Make the system choose this process, and not its worker, when memory runs out (Linux)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    except OSError:
        logger.info("the order of the out-of-memory killer cannot be set here")


def show_own_logs() -> None:
    """Write this project's log lines of level INFO to standard error, and others' warnings."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    for package in ("flows", "tasks", "fl_core"):
        logging.getLogger(package).setLevel(logging.INFO)


def _read_lines(lines: BinaryIO, jobs: "queue.SimpleQueue[bytes]") -> None:
    for line in lines:
        jobs.put(line)
    # The worker is gone. Not sys.exit: the main thread may be deep in training.
    os._exit(0)


def _answer(answers: BinaryIO, end: RunEnd) -> None:
    answers.write(json.dumps({"end": int(end)}).encode() + b"\n")


def prepare(setup: ChildSetup) -> None:
    """Make the process ready: check and silence what would leave, load what is slow.

    Raises:
        SystemExit: Log lines would go to the API although they may not.
    """
    from prefect.settings import get_current_settings

    if not setup.api_logging:
        if get_current_settings().logging.to_api.enabled:
            logger.error("prefect api logging is on, expected off; start the worker again")
            raise SystemExit(RunEnd.NOT_STARTED)
        drop_state_texts()
        relate_to_runs_only()
        look_for_no_suspension()
    for target in setup.allowed.values():
        resolve(target)
    if setup.preload is not None:
        resolve(setup.preload)()


def resolve(target: str) -> Any:
    """Return what ``module.attribute`` names; the names come from the worker, never from a run."""
    module, _, attribute = target.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def run_job(job: Job, *, allowed: Mapping[str, str]) -> RunEnd:
    """Run one job in this process; the engine reports the run's states to the API.

    Nothing of the deployment is used: no entrypoint, command, environment, pull step or job
    variable. Parameters are plain values that fit the flow's own signature, else nothing runs.
    """
    from prefect.client.schemas.objects import FlowRun
    from prefect.exceptions import Abort, Pause
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    flow = resolve(allowed[job.flow_name]) if job.flow_name in allowed else None
    if flow is None or flow.name != job.flow_name:
        return RunEnd.UNKNOWN_FLOW
    parameters = _validated(flow, job.parameters)
    if parameters is None:
        return RunEnd.BAD_PARAMETERS
    flow_run = FlowRun.model_validate_json(job.flow_run).model_copy(
        update={"state": Pending(), "parameters": parameters}
    )
    try:
        run_flow(flow, flow_run=flow_run, parameters=parameters, return_type="state")
    except (Abort, Pause):
        logger.info("run stopped by the api flow=%s", job.flow_name)
    except Exception:
        # The edge of a run: the next one must still be served, and no text may travel.
        logger.exception("engine failed flow=%s", job.flow_name)
        return RunEnd.ENGINE_FAILED
    return RunEnd.OVER


def _validated(flow: Any, parameters: Mapping[str, JsonValue]) -> dict[str, Any] | None:
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError

    # Nested values are refused first: validation would follow {"$ref": ...} and load a block.
    if not all(isinstance(value, Plain) for value in parameters.values()):
        logger.warning("run refused flow=%s reason=nested_parameter", flow.name)
        return None
    try:
        return cast("dict[str, Any]", flow.validate_parameters(dict(parameters)))
    except (ParameterBindError, ParameterTypeError, SignatureMismatchError):
        logger.warning("run refused flow=%s reason=parameters", flow.name, exc_info=True)
        return None


def drop_state_texts() -> None:
    """Make Prefect's engines send states of flow and task runs without any text.

    The exception itself stays with the run in this process and in the local log; it is not
    written to result storage either, which Prefect does for failures even when results are not
    persisted. Safe to call more than once.
    """
    from prefect import flow_engine, task_engine

    senders: list[tuple[Any, str]] = [
        (flow_engine, "propose_state"),
        (flow_engine, "propose_state_sync"),
        (task_engine, "emit_task_run_state_change_event"),
    ]
    writers: list[tuple[Any, str]] = [
        (flow_engine, "exception_to_failed_state"),
        (task_engine, "exception_to_failed_state"),
        (task_engine, "exception_to_failed_state_sync"),
    ]
    for wrap, places in ((_without_text, senders), (_without_record, writers)):
        for engine, name in places:
            original = getattr(engine, name)
            if not hasattr(original, "__wrapped__"):
                setattr(engine, name, functools.wraps(original)(wrap(original)))


def relate_to_runs_only() -> None:
    """Make Prefect's events name the run that they belong to and nothing else.

    For each it would otherwise ask the API about flow, deployment, queue and pool: four calls out
    of the site for what the coordinator knows.
    """
    import prefect.events.worker
    from prefect.context import FlowRunContext
    from prefect.events.related import object_as_related_resource

    async def own_run(client: object, exclude: set[str] | None = None) -> list[Any]:
        del client
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return []
        found = object_as_related_resource("flow-run", "flow-run", context.flow_run)
        return [] if found.id in (exclude or set()) else [found]

    events: Any = prefect.events.worker
    events.related_resources_from_run_context = own_run


def look_for_no_suspension() -> None:
    """Keep Prefect's engine from watching whether somebody suspends its run.

    It would listen to the events of all runs, and list runs every few seconds; a session is
    cancelled or stopped, never suspended.
    """
    import prefect.flow_engine

    engine: Any = prefect.flow_engine
    engine.observe_flow_run_suspension = lambda *_, **__: contextlib.nullcontext()


def _without_text(send: Callable[..., Any]) -> Callable[..., Any]:
    from prefect.client.schemas.objects import State

    def quiet(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, State):
                value.message = None
        return send(*args, **kwargs)

    return quiet


def _without_record(make: Callable[..., Any]) -> Callable[..., Any]:
    def unwritten(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **(kwargs | {"result_store": None, "write_result": False}))

    return unwritten


if __name__ == "__main__":
    main()
