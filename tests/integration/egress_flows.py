"""One flow under the name that a gateway lets through, with the acts that its tests need."""

import logging
import os
import time
from pathlib import Path

import httpx
from prefect import flow, get_run_logger, task
from prefect.events import emit_event

logger = logging.getLogger(__name__)


@task(persist_result=False, task_run_name="round-0001")
def step(row: str) -> str:
    if row.startswith("bad"):
        raise ValueError(f"bad row {row}")
    return row


@flow(name="site-session", persist_result=False, flow_run_name="renamed-{act}")
def session(act: str, path: str, row: str) -> str:
    """Do one act and leave a file."""
    if act == "step":
        step(row)
    if act == "tell":
        # Every way in which code at a site could let something out through Prefect's client.
        get_run_logger().error("row %s", row)
        emit_event(event="rows.seen", resource={"prefect.resource.id": f"row.{row}"})
        answers = [_ask(method, path) for method, path in PROBES]
        Path(path).write_text(",".join(str(answer) for answer in answers))
        return row
    if act == "long":
        Path(path).write_text(str(os.getpid()))
        time.sleep(120)
    Path(path).write_text(row)
    return row


PROBES = (
    ("POST", "/flow_runs/filter"),
    ("POST", "/logs/"),
    ("POST", "/artifacts/"),
    ("GET", "/work_pools/site-south"),
    ("DELETE", "/flow_runs/00000000-0000-0000-0000-000000000000"),
    ("GET", "/admin/settings"),
    ("GET", "/../../hello"),
    ("GET", "/admin/version?row=patient-4711-canary"),
)


def _ask(method: str, path: str) -> int:
    return httpx.request(method, os.environ["PREFECT_API_URL"] + path).status_code
