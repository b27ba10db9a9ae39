"""A site's worker behind its egress and a real gateway, before a real Prefect server."""

import json
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prefect.client.schemas.filters import LogFilter, TaskRunFilter
from prefect.states import Cancelling
from site_gateway import Gateway, plain_environment
from worker_stack import Stack, is_alive, wait_for

from fl_core.artifacts.documents import to_bytes
from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect
from flows.warm_child import RunEnd
from tasks.gateway_access import SiteDoor
from tasks.outgoing import read_outgoing

HERE = Path(__file__).parent
CANARY = "patient-4711-canary"
SESSION = "site-session"
POOL = "site-north"
_START = """
import sys
from tasks.gateway_access import SiteDoor
from flows.way_out import open_way_out
door = SiteDoor.model_validate_json(sys.argv[1])
pool = "site-" + door.site
with open_way_out(door, pool=pool) as way:
    print("egress", way.egress.url, file=open(door.home / "egress", "w"))
    from flows.site_worker import run_worker
    run_worker(pool=pool, allowed={"site-session": "egress_flows.session"}, preload=None,
               name=door.site, api_logging=False, way=way)
"""


@dataclass
class SiteWorker:
    """A worker of a site in a process of its own."""

    door: SiteDoor
    process: subprocess.Popen[bytes]
    log: Path

    def says(self, text: str) -> bool:
        return text in self.log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start_worker(door: SiteDoor, *, code: str = _START) -> SiteWorker:
    log = door.home / "worker.log"
    environment = plain_environment(
        PYTHONPATH=str(HERE),
        PREFECT_HOME=str(door.home / "prefect"),
        HTTP_PROXY="http://127.0.0.1:9",
    )
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code, to_bytes(door).decode()],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return SiteWorker(door, process, log)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefect")
    with ended_with_this_process():
        stack = Stack(folder, start_prefect(folder / "server"))
        try:
            yield stack
        finally:
            stack.close()
            stop(stack.server)


@pytest.fixture(scope="module")
def gateway(stack, tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), prefect_url=stack.server.url + "/api")
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def worker(stack, gateway):
    """A worker that is ready; the tests leave it as it was."""
    stack.make_pool(POOL)
    stack.make_pool("site-south")
    door = gateway.make_site("north")
    gateway.enrol(door)
    worker = start_worker(door)
    try:
        wait_for(lambda: worker.says("worker ready"), what="the worker")
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def create(stack, act, path, *, row="good", **deployment):
    parameters = {"act": act, "path": str(path), "row": row}
    return stack.create_run(POOL, SESSION, parameters, **deployment)


def test_run_completes_and_its_step_is_shown(stack, worker, tmp_path):
    run = create(stack, "step", tmp_path / "left", row=CANARY)

    assert stack.final_state(run)[0] == "COMPLETED"
    assert (tmp_path / "left").read_text() == CANARY

    def step_run():
        of_run = TaskRunFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
        found = stack.client.read_task_runs(task_run_filter=of_run)
        return found[0] if found and found[0].state_type == "COMPLETED" else None

    # Events travel apart from states, and the server stores them a little later.
    shown = wait_for(step_run, what="showing the step")
    assert shown.name == "round-0001"
    assert stack.client.read_flow_run(run.id).name == run.name
    secret = (worker.door.home / "egress").read_text().split("/")[3]
    assert len(secret) == 32
    assert not worker.says(secret)


def test_nothing_looks_broken_in_the_log_of_an_honest_session(stack, gateway, tmp_path):
    stack.make_pool("site-quiet")
    door = gateway.make_site("quiet")
    gateway.enrol(door)
    worker = start_worker(door)
    try:
        parameters = {"act": "step", "path": str(tmp_path / "left"), "row": "x"}
        run = stack.create_run("site-quiet", SESSION, parameters)
        assert stack.final_state(run)[0] == "COMPLETED"
        wait_for(lambda: worker.says("run ended"), what="the end of the run")
        assert worker.stop() == 0
    finally:
        worker.process.kill()
        worker.process.wait()

    text = worker.log.read_text()
    assert [line for line in text.splitlines() if "WARN" in line or "ERROR" in line] == []
    assert "Traceback" not in text
    # What Prefect's client asks beyond the list: fields of its run and pool, and log lines.
    assert {each.path.rpartition("/")[0] for each in read_outgoing(door.home) if each.kept} == {
        "/api/work_pools",
        "/api/flow_runs",
        "/api/admin",
    }


def test_site_without_work_rests_and_serves_the_next_session(stack, gateway, tmp_path):
    stack.make_pool("site-resting")
    door = gateway.make_site("resting")
    gateway.enrol(door)
    soon = "    import flows.site_worker\n    flows.site_worker.REST_S = 1.0\n    from flows.site_w"
    worker = start_worker(door, code=_START.replace("    from flows.site_w", soon))
    try:
        wait_for(lambda: worker.says("the warm process rests"), what="the rest")
        wait_for(lambda: not children(worker.process.pid), what="the end of the warm process")
        parameters = {"act": "step", "path": str(tmp_path / "left"), "row": "x"}
        run = stack.create_run("site-resting", SESSION, parameters)
        assert stack.final_state(run)[0] == "COMPLETED"
        assert worker.stop() == 0
    finally:
        worker.process.kill()
        worker.process.wait()


def children(pid):
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for path in found for child in path.read_text().split()]


def test_step_that_fails_is_shown_without_a_word_of_why(stack, worker, tmp_path):
    before = stack.database_bytes().count(f"row bad-{CANARY}".encode())

    run = create(stack, "step", tmp_path / "left", row=f"bad-{CANARY}")

    assert stack.final_state(run) == ("FAILED", None)
    time.sleep(3)
    assert stack.database_bytes().count(f"row bad-{CANARY}".encode()) == before
    assert worker.says(f"bad row bad-{CANARY}")


def test_what_code_at_a_site_tells_prefect_stays_at_the_site(stack, worker, tmp_path):
    path = tmp_path / "answers"

    run = create(stack, "tell", path, row=f"told-{CANARY}")

    assert stack.final_state(run)[0] == "COMPLETED"
    assert path.read_text() == "403,403,403,403,403,403,404,200"
    logs = LogFilter.model_validate({"flow_run_id": {"any_": [str(run.id)]}})
    assert stack.client.read_logs(logs) == []
    # The parameter itself came from the server.
    assert f"row.told-{CANARY}".encode() not in stack.database_bytes()
    kept = {(each.method, each.path) for each in read_outgoing(worker.door.home) if each.kept}
    assert {
        ("POST", "/api/flow_runs/filter"),
        ("POST", "/api/logs/"),
        ("EVENT", "rows.seen"),
    } <= kept


def test_gateway_saw_what_the_record_says_and_nothing_else(stack, gateway, worker, tmp_path):
    run = create(stack, "step", tmp_path / "left")
    assert stack.final_state(run)[0] == "COMPLETED"
    time.sleep(1)

    lines = [
        json.loads(line)
        for line in (gateway.folder / "gateway" / "record.jsonl").read_text().splitlines()
    ]
    seen = [(e["method"], e["path"]) for e in lines if e.get("site") == "north"]
    sent = [
        (e.method, e.path.partition("?")[0]) for e in read_outgoing(worker.door.home) if not e.kept
    ]
    calls = [call for call in sent if call in seen and str(run.id) in call[1]]

    assert not {call for call in seen if call not in sent}
    # Reads of the state by the watch and the claim aside: Pending, Running, Completed.
    assert [call[0] for call in calls].count("POST") == 3


def test_run_that_asks_for_more_is_refused_and_in_the_record(stack, worker, tmp_path):
    run = create(stack, "step", tmp_path / "left", title="hostile", entrypoint="evil.py:flow")

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.ASKS_FOR_MORE}")
    assert not (tmp_path / "left").exists()
    (kept,) = [e for e in read_outgoing(worker.door.home) if str(run.id) in e.path and e.kept]
    assert kept.method == "RUN"
    assert "entrypoint" in kept.kept


def test_nested_parameter_is_refused_and_in_the_record(stack, worker, tmp_path):
    run = stack.create_run(
        POOL, SESSION, {"act": "step", "path": {"$ref": "block"}, "row": "x"}, title="nested"
    )

    assert stack.final_state(run) == ("CRASHED", f"status {RunEnd.BAD_PARAMETERS}")
    kept = [e for e in read_outgoing(worker.door.home) if str(run.id) in e.path and e.kept]
    assert "parameters" in kept[-1].kept


def test_cancelled_run_loses_its_child(stack, worker, tmp_path):
    path = tmp_path / "long"
    run = create(stack, "long", path)
    pid = int(wait_for(lambda: path.exists() and path.read_text(), what="the run's start"))

    stack.client.set_flow_run_state(run.id, Cancelling())

    assert stack.final_state(run)[0] == "CANCELLED"
    assert not is_alive(pid)


def test_run_marked_crashed_from_afar_goes_on(stack, worker, tmp_path):
    from prefect.states import Crashed

    path = tmp_path / "long"
    run = create(stack, "long", path)
    pid = int(wait_for(lambda: path.exists() and path.read_text(), what="the run's start"))

    stack.client.set_flow_run_state(run.id, Crashed(message="worker lost"), force=True)
    time.sleep(7)

    assert is_alive(pid)
    stack.client.set_flow_run_state(run.id, Cancelling(), force=True)
    wait_for(lambda: not is_alive(pid), what="the end of the child")


def test_listener_knows_nobody_without_its_secret(worker):
    found = subprocess.run(
        ["ss", "-tlnpH"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (line,) = [line for line in found if f"pid={worker.process.pid}," in line]
    address = line.split()[3]

    assert address.startswith("127.0.0.1:")
    for path in ("/", "/api/admin/version", "/secret/api/admin/version"):
        assert httpx.get(f"http://{address}{path}").status_code == 404


def test_worker_waits_for_gateway_and_enrolment_and_goes_on_after_a_restart(
    stack, gateway, tmp_path
):
    stack.make_pool("site-late")
    door = gateway.make_site("late")
    worker = start_worker(door)
    try:
        wait_for(lambda: worker.says("does not know this site's certificate"), what="the refusal")
        gateway.enrol(door)
        wait_for(lambda: worker.says("worker ready"), what="the worker")
        gateway.stop()
        wait_for(lambda: worker.says("does not answer"), what="noticing the cut")
        gateway.start()
        parameters = {"act": "step", "path": str(tmp_path / "left"), "row": "x"}
        run = stack.create_run("site-late", SESSION, parameters)
        assert stack.final_state(run)[0] == "COMPLETED"
        assert worker.stop() == 0
    finally:
        worker.process.kill()
        worker.process.wait()


def test_site_is_told_when_the_coordinator_was_upgraded_and_serves_on_when_it_fits_again(
    stack, gateway, worker, tmp_path
):
    stricter = (
        "import tasks.hello as hello\n"
        "hello.welcome = lambda said: hello.Welcome(fedloom='9.0', complaints=('too old',))\n"
    )
    gateway.stop()
    # What is kept of the site's last hello is judged anew by the other version.
    gateway.start(before=stricter)
    wait_for(lambda: worker.says("no session is served: too old"), what="the complaint")
    gateway.stop()
    gateway.start()

    run = create(stack, "step", tmp_path / "left")

    assert stack.final_state(run)[0] == "COMPLETED"


def test_worker_that_waits_for_its_gateway_stops_when_asked(tmp_path):
    gateway = Gateway(tmp_path)
    door = gateway.make_site("patient")
    # Takes connections and says nothing, as a firewall in the middle may.
    with socket.create_server(("127.0.0.1", gateway.port)):
        worker = start_worker(door)
        try:
            wait_for(lambda: read_outgoing(door.home), what="the first hello")
            assert worker.stop() == 0
        finally:
            worker.process.kill()
            worker.process.wait()


def test_worker_whose_versions_do_not_fit_ends_readably_before_anything_else(gateway, worker):
    door = gateway.make_site("old")
    gateway.enrol(door)
    aged = _START.replace(
        "with open_way_out",
        "import tasks.greeting\n"
        "real = tasks.greeting.own_hello\n"
        "tasks.greeting.own_hello = lambda site: real(site).model_copy("
        "update={'versions': dict(real(site).versions, peft='0.1.0')})\n"
        "with open_way_out",
    )

    old = start_worker(door, code=aged)

    assert old.process.wait(60) == 1
    assert old.says("site old has peft 0.1.0, expected peft")
    assert {each.path for each in read_outgoing(door.home)} == {
        "/hello",
        "/store/keys?prefix=rosters%2F",
    }
    assert not old.says("worker ready")
