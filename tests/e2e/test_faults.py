"""What happens in a year: a server goes away, a disk fills, a clock is wrong, a file is torn.

Each in the middle of a campaign over real servers. What is asked is always the same: no round is
released twice, nothing is counted or charged twice, and running again finishes everything.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from flows.local_stack import restart_server
from flows.local_workers import site_environment, start_worker, start_workers
from flows.processes import is_alive, stop
from tests.e2e.federation import SITES, Federation, wait_until
from tests.e2e.test_kill import require_finished_once, reserves, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AWAY_S = 60
SKEW = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def end_server(federation: Federation, name: str) -> None:
    """End a server as the power does, with all its processes."""
    server = federation.stack.processes()[name]
    os.killpg(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(server), what=f"{name} is gone")


@pytest.mark.parametrize(
    ("server", "away_s"),
    [
        pytest.param("s3", AWAY_S, id="store-away-for-a-minute"),
        pytest.param("postgres", 5, id="database-restarted"),
        pytest.param("gateway", 20, id="gateway-away"),
    ],
)
def test_a_server_that_goes_away_mid_round_costs_nothing(
    federation, server: Literal["s3", "postgres", "gateway"], away_s
):
    campaign_id = f"without-{server}"
    with running(federation, campaign_id) as digest:
        end_server(federation, server)
        time.sleep(away_s)
        restart_server(federation.stack, server)

    require_finished_once(federation, campaign_id, digest)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A folder on a disk that has no room for one update."""
    aside = folder.with_name(folder.name + ".aside")
    shutil.copytree(folder, aside)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        _fill(folder / "filler")
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(aside)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_a_site_with_a_full_disk_says_no_update_and_the_round_goes_on(federation):
    file = federation.write_campaign("full-disk", max_rounds=1, deadline_s=60)
    digest = federation.approve(file)
    home = federation.site_home("site-a")
    shutil.rmtree(home / "outbox" / "exchanges", ignore_errors=True)

    with full_disk(home / "outbox"):
        (only,) = federation.run(str(file))["rounds"]
    after = federation.write_campaign("room-again", max_rounds=1)
    federation.approve(after)
    (again,) = federation.run(str(after))["rounds"]

    assert only["outcome"]["contributors"] == ["site-e"]
    assert only["answers"]["site-a"]["status"] in {"declined", "missing"}
    assert len(reserves(federation, "site-a", digest)) <= 1
    assert again["outcome"]["contributors"] == list(SITES)


def test_a_torn_ledger_entry_stops_its_site_and_recovery_brings_it_back(federation):
    home = federation.site_home("site-a")
    newest = max((home / "ledger" / "entries").glob("*.json"))
    whole = newest.read_bytes()
    newest.chmod(0o600)
    newest.write_bytes(whole[: len(whole) // 2])
    verify = ("ledger", "--home", str(federation.home), "--site", "site-a", "--verify")

    torn = federation.fedloom(*verify, expect=1)
    first = federation.write_campaign("torn-ledger", max_rounds=1)
    federation.approve(first)
    (without,) = federation.run(str(first))["rounds"]
    newest.unlink()
    federation.fedloom("ledger", "recover", "--home", str(federation.home), "--site", "site-a")
    second = federation.write_campaign("whole-ledger", max_rounds=1)
    federation.approve(second)
    (right,) = federation.run(str(second))["rounds"]

    assert newest.stem in torn.stderr
    assert without["outcome"]["contributors"] == ["site-e"]
    assert newest.read_bytes() == whole
    assert right["outcome"]["contributors"] == list(SITES)


@pytest.mark.parametrize(
    ("skew", "contributors"),
    [
        pytest.param("+1h", ["site-e"], id="an-hour-ahead"),
        pytest.param("-1h", ["site-e"], id="an-hour-behind"),
    ],
)
def test_a_clock_that_is_an_hour_off_costs_its_own_site_at_most(federation, skew, contributors):
    assert SKEW.exists(), "install Debian's package faketime, as .ci/run does"
    campaign_id = f"clock{'-ahead' if skew[0] == '+' else '-behind'}"
    file = federation.write_campaign(campaign_id, max_rounds=1, deadline_s=60)
    digest = federation.approve(file)
    stop(federation.stack.processes()["site site-a"])
    env = site_environment(federation.stack, "site-a") | {
        "LD_PRELOAD": str(SKEW),
        "FAKETIME": skew,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    argv = federation.command("site", "start", "--home", str(federation.site_home("site-a")))
    skewed = start_worker(federation.stack, "site site-a", argv, env)
    try:
        (only,) = federation.run(str(file))["rounds"]
    finally:
        stop(skewed)
        start_workers(federation.stack)

    assert only["outcome"]["status"] == "released"
    assert only["outcome"]["contributors"] == contributors
    assert len(reserves(federation, "site-a", digest)) == len(contributors) - 1
