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
from importlib.metadata import distribution
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

import psutil
import pytest

from fl_core.artifacts import keys
from flows.local_stack import start
from flows.local_workers import site_environment, start_worker, start_workers
from flows.processes import is_alive, stop
from tests.e2e.federation import SITES, Federation, wait_until
from tests.e2e.test_kill import (
    STEPS,
    children_of,
    entries,
    require_finished_once,
    require_nothing_twice,
    reserves,
    running,
)

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
        start(federation.home)

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
    file = federation.write_campaign("full-disk", max_rounds=1, deadline_s=40)
    digest = federation.approve(file)
    home = federation.site_home("site-a")
    shutil.rmtree(home / "outbox" / "exchanges", ignore_errors=True)

    with full_disk(home / "outbox"):
        (only,) = federation.run(str(file))["rounds"]
    require_nothing_twice(federation, "full-disk", digest)
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
    first = federation.write_campaign("torn-ledger", max_rounds=1, deadline_s=40)
    digest = federation.approve(first)
    (without,) = federation.run(str(first))["rounds"]
    newest.unlink()
    federation.fedloom("ledger", "recover", "--home", str(federation.home), "--site", "site-a")
    require_nothing_twice(federation, "torn-ledger", digest)
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
    file = federation.write_campaign(campaign_id, max_rounds=1, deadline_s=40)
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
    require_nothing_twice(federation, campaign_id, digest)


@contextlib.contextmanager
def held_still(process: psutil.Process) -> Iterator[None]:
    """Take the processor away from a process; it does not notice."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_a_site_slower_than_the_deadline_misses_its_round_and_joins_the_next(federation):
    file = federation.write_campaign("slow-site", deadline_s=45, local_steps=STEPS)
    digest = federation.approve(file)
    before = entries(federation, "site-e")
    command = federation.start("run", str(file), "--home", str(federation.home))
    wait_until(lambda: entries(federation, "site-e") > before, what="site-e charges the round")
    worker = federation.stack.processes()["site site-e"]
    (child,) = children_of(worker.pid, "flows.warm_child")

    with held_still(child):
        store, ended = federation.store(), keys.outcome("slow-site", 1)
        wait_until(lambda: ended in store.list(ended), what="round 1 ends")
    command.wait(timeout=600)

    first, second = federation.status("slow-site")["rounds"]
    assert first["answers"]["site-e"]["status"] == "missing"
    assert first["outcome"]["contributors"] == ["site-a"]
    assert second["outcome"]["contributors"] == list(SITES)
    assert reserves(federation, "site-e", digest) == [1, 2]
    assert not store.list(keys.manifest("slow-site", 1, "site-e"))
    require_nothing_twice(federation, "slow-site", digest)


def of_version(version: str, folder: Path) -> Path:
    """A folder whose metadata of fedloom, seen before the installed one, states a version."""
    for file in distribution("fedloom").files or ():
        if file.parent.name.endswith(".dist-info"):
            copy = folder / f"fedloom-{version}.dist-info" / file.name
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file.locate(), copy)
    metadata = folder / f"fedloom-{version}.dist-info" / "METADATA"
    own = f"\nVersion: {installed_version('fedloom')}\n"
    text = metadata.read_text()
    assert text.count(own) == 1
    metadata.write_text(text.replace(own, f"\nVersion: {version}\n"))
    return folder


def test_a_worker_of_an_old_version_trains_nothing_until_it_is_the_coordinators(
    federation, tmp_path
):
    file = federation.write_campaign("old-worker", deadline_s=40)
    digest = federation.approve(file)
    stop(federation.stack.processes()["site site-a"])
    env = site_environment(federation.stack, "site-a")
    env |= {"PYTHONPATH": str(of_version("0.0.1", tmp_path))}
    argv = federation.command("site", "start", "--home", str(federation.site_home("site-a")))
    old = start_worker(federation.stack, "site site-a", argv, env)
    try:
        first = federation.run(str(file), "--rounds", "1")["rounds"][-1]
        said = federation.json("sites", "--home", str(federation.home))["sites"]
    finally:
        stop(old)
        start_workers(federation.stack)
    second = federation.run("old-worker")["rounds"][-1]

    (complaint,) = next(each["complaints"] for each in said if each["site"] == "site-a")
    assert "site site-a runs fedloom 0.0.1, expected" in complaint
    assert first["outcome"]["contributors"] == ["site-e"]
    assert second["outcome"]["contributors"] == list(SITES)
    assert reserves(federation, "site-a", digest) == [2]
    require_nothing_twice(federation, "old-worker", digest)
