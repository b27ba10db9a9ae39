"""A site's worker that is never restarted takes its next keys when they are put in place."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from site_gateway import Gateway, plain_environment
from worker_stack import Stack, wait_for

from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.replacing import replace_file
from fl_core.campaign.roster import RosterEntry, latest_roster, rotate
from fl_core.updates.signing import generate_key, public_hex, write_key
from flows.processes import ended_with_this_process, stop
from flows.servers import start_prefect
from tasks.certificates import make_certificate
from tests.worlds import NOW

HERE = Path(__file__).parent
# What `fedloom site start` does, with a flow that needs no model.
START = """
import sys
from tasks.gateway_access import SiteDoor
from flows.site_worker import run_worker
from flows.way_out import open_way_out
door = SiteDoor.model_validate_json(sys.argv[1])
pool = "site-" + door.site
with open_way_out(door, pool=pool) as way:
    run_worker(pool=pool, allowed={"site-session": "egress_flows.session"}, preload=None,
               name=door.site, api_logging=False, way=way)
"""


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


@pytest.fixture(params=["certificate", "token"])
def site(request, stack, gateway):
    """A site's door, with its worker running."""
    name = f"by-{request.param}"
    stack.make_pool(f"site-{name}")
    door = gateway.make_site(name, identify=request.param)
    gateway.enrol(door)
    log = door.home / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", START, to_bytes(door).decode()],
            env=plain_environment(PYTHONPATH=str(HERE), PREFECT_HOME=str(door.home / "prefect")),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "worker ready" in log.read_text(), what="the worker")
        yield door
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def run_of(stack, door, left):
    parameters = {"act": "leave", "path": str(left), "row": "good"}
    run = stack.create_run(f"site-{door.site}", "site-session", parameters)
    return stack.final_state(run, limit_s=120)[0]


def change_keys(gateway, door):
    """Make next keys, have them admitted, and put them in place as `--finish` does."""
    fresh, key = door.home / "fresh", generate_key()
    pem = make_certificate(fresh / "tls.crt", fresh / "tls.key", common_name=door.site)
    write_key(key, fresh / "key.pem")
    known = latest_roster(gateway.store).entry(door.site)
    entry = RosterEntry(
        site=door.site,
        signing_key=public_hex(key),
        certificate=pem,
        identify=known.identify,
        since=NOW,
    )
    rotate(gateway.store, entry, old_key=known.signing_key)
    for name in ("key.pem", "tls.key", "tls.crt"):
        replace_file(door.home / name, (fresh / name).read_bytes(), mode=0o600)
    shutil.rmtree(fresh)


def test_worker_goes_on_with_its_next_keys_and_is_not_restarted(stack, gateway, site, tmp_path):
    before = run_of(stack, site, tmp_path / "before")

    change_keys(gateway, site)
    after = run_of(stack, site, tmp_path / "after")

    assert (before, after) == ("COMPLETED", "COMPLETED")
    assert (tmp_path / "after").read_text() == "good"
