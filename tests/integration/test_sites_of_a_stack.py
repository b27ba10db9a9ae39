"""Sites of a local stack: what they reach through the gateway, and what nobody gives them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_sites import (
    NORTH,
    PLAN,
    POLICY,
    ROWS,
    SOUTH,
    coordinator_store,
    door,
    gateway_store,
    is_let_in,
    site_store,
    wait_for,
    write_plan,
)

from fl_core.artifacts import keys
from fl_core.campaign.roster import latest_roster
from fl_core.errors import CampaignError, StoreUnavailable
from flows.cli.context import coordinator_environment
from flows.home_upgrade import take_sites_through_gateway
from flows.local_gateway import GatewayFiles, gateway_answers, gateway_environment
from flows.local_sites import LocalSite, make_local_site, site_home
from flows.local_stack import Stack, connect, start, stop
from flows.local_workers import environment, site_environment
from flows.processes import answers, ended_with_this_process, free_port, is_alive
from flows.stack_file import MLFLOW_BUCKET, Stated, stack_path
from tasks.enrolment import admit, read_enrolment
from tasks.invite import read_invite
from tasks.settings import open_store, read_settings
from tasks.site_config import (
    CREDENTIALS,
    SiteHome,
    SiteStore,
    config_text,
    read_site_config,
)


def test_gateway_answers_with_the_certificate_of_its_invite_and_with_no_other(stack, tmp_path):
    invite = read_invite(stack.invite)
    pinned = tmp_path / "pinned.crt"
    pinned.write_text(str(invite.certificate))

    assert answers(f"{invite.url}/health", trusted=pinned)
    assert not answers(f"{invite.url}/health")
    assert not answers(f"{invite.url.replace('https', 'http')}/health")


def test_gateway_keeps_what_sites_write_and_can_write_nothing_else(stack):
    write_plan(stack)
    own = gateway_store(stack)

    assert own.get(PLAN) == b"plan"
    assert own.put_once(NORTH, b"first")
    assert not own.put_once(NORTH, b"second")
    assert own.get(NORTH) == b"first"
    for key in (PLAN.replace("plan", "outcome"), "rosters/000001.json", "ledger/clients/1.json"):
        with pytest.raises(StoreUnavailable):
            own.put_once(key, b"forged")
    coordinator_store(stack).put_once("drafts/aa/campaign.toml", b"a draft")
    with pytest.raises(StoreUnavailable):
        own.get("drafts/aa/campaign.toml")


def test_enrolled_site_reads_a_plan_through_the_gateway_and_nothing_of_another_site(stack):
    write_plan(stack)
    coordinator_store(stack).put_once(SOUTH, b"not for north")
    north = site_store(stack, "north")

    assert north.get(PLAN) == b"plan"
    for key in (SOUTH, "drafts/aa/campaign.toml"):
        with pytest.raises(StoreUnavailable):
            north.get(key)
    for key in (PLAN.replace("plan", "outcome"), SOUTH, "rosters/000009.json"):
        with pytest.raises(StoreUnavailable):
            north.put_once(key, b"forged")


def test_site_that_was_made_and_not_enrolled_is_refused_until_it_is(stack):
    enrolment = make_local_site(stack, LocalSite("west", ROWS, POLICY))
    write_plan(stack)
    with pytest.raises(StoreUnavailable):
        door(stack, "west").get(PLAN)

    admit(coordinator_store(stack), enrolment)

    assert wait_for(lambda: is_let_in(stack, "west"))
    assert door(stack, "west").get(PLAN) == b"plan"


def test_gateway_cannot_reach_the_bucket_of_mlflow(stack):
    own = gateway_environment(stack.home, stack.file)

    with pytest.raises(StoreUnavailable):
        open_store(read_settings(own | {"FEDLOOM_STORE": f"s3://{MLFLOW_BUCKET}"})).list("")


def test_process_of_a_site_is_given_no_address_and_no_key(stack):
    settings = site_environment(stack, "north")

    text = json.dumps(settings)
    file = stack.file
    ports = (file.prefect_port, file.mlflow_port, file.s3_ports["s3"])
    assert not any(f":{port}" in text for port in ports)
    pairs = (file.coordinator, file.gateway, file.evaluation)
    assert not any(pair.secret_key in text for pair in pairs)
    assert not {"PREFECT_API_URL", "FEDLOOM_STORE", "MLFLOW_TRACKING_URI"} & set(settings)


@pytest.mark.parametrize("died", [("gateway",), ("postgres", "s3")], ids="+".join)
def test_start_starts_just_the_servers_that_died(stack, died):
    before = stack.processes()
    for name in died:
        os.killpg(before[name].pid, signal.SIGKILL)
    assert wait_for(lambda: connect(stack.home) is None)
    assert wait_for(lambda: not any(is_alive(before[name]) for name in died))

    again = start(stack.home)

    after = again.processes()
    assert connect(stack.home) is not None
    assert set(again.seconds) == set(died)
    assert again.file == stack.file
    assert {name for name in before if after[name].pid != before[name].pid} == set(died)


def test_start_beside_servers_that_run_refuses_what_is_stated_otherwise(stack):
    os.kill(stack.processes()["gateway"].pid, signal.SIGKILL)
    assert wait_for(lambda: connect(stack.home) is None)

    with pytest.raises(CampaignError, match="runs with gateway port"):
        start(stack.home, stated=Stated(gateway_port=free_port()))

    assert is_alive(stack.processes()["prefect"])
    start(stack.home)


def test_gateway_that_died_comes_back_under_the_same_certificate(stack):
    before = GatewayFiles(stack.home).certificate.read_bytes()
    os.kill(stack.processes()["gateway"].pid, signal.SIGKILL)
    assert wait_for(lambda: connect(stack.home) is None)

    start(stack.home)

    assert connect(stack.home) is not None
    assert gateway_answers(stack.home, stack.file)
    assert GatewayFiles(stack.home).certificate.read_bytes() == before


def test_stolen_key_is_withdrawn_while_prefect_is_down(stack):
    write_plan(stack)
    thief = site_store(stack, "stolen")
    assert thief.list(keys.ROSTERS)
    os.killpg(stack.processes()["prefect"].pid, signal.SIGKILL)
    assert wait_for(lambda: connect(stack.home, needed=("prefect",)) is None)

    revoked = command(stack, "revoke", "stolen", "--yes", "--reason", "laptop stolen")
    start(stack.home)

    assert revoked.returncode == 0, revoked.stderr
    assert json.loads(revoked.stdout)["ended_runs"] is None
    assert "session runs were not ended: no prefect server answers" in revoked.stderr
    with pytest.raises(StoreUnavailable, match="revoked"):
        thief.list(keys.ROSTERS)


def command(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `fedloom` at the coordinator, over the home of the stack and nothing else."""
    argv = [sys.executable, "-m", "flows.cli.main", *words]
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("FEDLOOM_", "PREFECT_"))}
    return subprocess.run(
        [*argv, "--home", str(stack.home), "--json"],
        env=plain | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def old_home(new_home) -> Iterator[Path]:
    home = new_home()
    with ended_with_this_process():
        yield home
        stop(home)


def test_site_of_an_earlier_fedloom_is_taken_behind_the_gateway_with_its_ledger(old_home):
    stack = start(old_home)
    site_store(stack, "north")
    home = site_home(old_home, "north")
    set_back(stack, home)
    spent = (home.root / "ledger" / "entries" / "000001.json").read_bytes()
    stop(old_home)

    again = start(old_home)
    changed = take_sites_through_gateway(again)

    assert again.file.coordinator == stack.file.coordinator
    assert changed == ["north"]
    assert take_sites_through_gateway(again) == []
    assert wait_for(lambda: is_let_in(again, "north"))
    assert not (home.root / CREDENTIALS).exists()
    assert (home.root / "ledger" / "entries" / "000001.json").read_bytes() == spent
    entry = latest_roster(coordinator_store(again)).entry("north")
    assert entry.certificate == (home.root / "tls.crt").read_text()
    assert entry.declared_examples == 64


def set_back(stack: Stack, home: SiteHome) -> None:
    """Put a site and its stack into the form that fedloom wrote before there was a gateway."""
    store, enrolment = coordinator_store(stack), read_enrolment(home.enrolment)
    bare = enrolment.model_copy(
        update={
            "certificate": None,
            "identify": None,
            "signature": "",
            "declared_examples": 64,
        }
    )
    admit(store, bare)
    plain = bare.model_dump(mode="json", exclude={"certificate", "identify", "signature"})
    home.enrolment.write_text(json.dumps(plain))
    config = read_site_config(home)
    direct = SiteStore(
        url="s3://fedloom", endpoint=stack.s3_endpoint, credentials_file=Path(CREDENTIALS)
    )
    changes = {"gateway": None, "store": direct, "prefect_api_url": f"{stack.prefect_url}/api"}
    home.config.write_text(config_text(config.model_copy(update=changes)))
    (home.root / CREDENTIALS).write_text("of-north\nof-north\n")
    for name in ("tls.crt", "tls.key", "gateway.crt"):
        (home.root / name).unlink()
    file = stack.file.model_dump(mode="json")
    for name in ("gateway", "gateway_port", "gateway_listen", "gateway_hosts"):
        del file[name]
    own = {"access_key": "of-north", "secret_key": "of-north"}
    stack_path(stack.home).write_text(json.dumps(file | {"version": 1, "sites": {"north": own}}))


def test_command_beside_a_stack_speaks_to_what_the_environment_names(stack, monkeypatch):
    names = ("FEDLOOM_STORE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    own = dict.fromkeys(names, "stated")
    for name, value in own.items():
        monkeypatch.setenv(name, value)

    found = dict(coordinator_environment(stack.home, needed=("s3", "prefect")) or {})
    monkeypatch.delenv("FEDLOOM_STORE")
    of_stack = coordinator_environment(stack.home, needed=("s3", "prefect"))

    assert own.items() <= found.items()
    assert of_stack == environment(stack)
