"""The sites of a local stack: what a folder holds once one was made there."""

from pathlib import Path

import pytest

from fl_core.errors import CampaignError
from fl_core.privacy.policy_template import policy_text
from flows.local_gateway import local_url, prepare_gateway
from flows.local_sites import LocalSite, follow_gateway, made_sites, make_local_site, site_home
from flows.local_stack import Stack
from flows.processes import free_port
from flows.stack_file import Stated, prepared_stack_file
from tasks.site_config import open_site, read_site_config

POLICY = policy_text(epsilon=8.0, delta=1e-5)


@pytest.fixture
def stack(tmp_path):
    file = prepared_stack_file(tmp_path, Stated())
    prepare_gateway(tmp_path, file)
    return Stack(tmp_path, file, {})


def test_site_knows_the_gateway_and_no_other_server(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))

    home = site_home(stack.home, "north")
    config = read_site_config(home)
    assert config.gateway.url == stack.gateway_url
    assert (home.root / config.gateway.certificate).read_bytes() == (
        stack.home / "gateway" / "tls.crt"
    ).read_bytes()
    assert (config.prefect_api_url, config.store) == (None, None)
    assert len(open_site(home, config).ledger.entries()) == 1


def test_no_file_of_a_site_holds_an_address_or_a_key_of_the_servers(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))

    kept = [p.read_bytes() for p in (stack.home / "sites").rglob("*") if p.is_file()]
    file = stack.file
    ports = (file.prefect_port, file.mlflow_port, *file.s3_ports.values())
    closed = [f"{host}:{port}" for host in ("127.0.0.1", "localhost") for port in ports]
    closed += [pair.secret_key for pair in (file.coordinator, file.gateway, file.evaluation)]
    assert [word for word in closed if any(word.encode() in data for data in kept)] == []


def test_only_sites_that_were_made_are_listed(stack):
    (stack.home / "sites" / "south").mkdir(parents=True)

    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))

    assert made_sites(stack.home) == ["north"]


def test_sites_follow_their_gateway_to_another_port_and_keep_what_their_owner_wrote(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))
    home = site_home(stack.home, "north")
    own = home.config.read_text().replace("threads = 1 ", "threads = 3 ") + "# mine\n"
    home.config.write_text(own)
    file = stack.file.model_copy(update={"gateway_port": free_port()})
    told = []
    prepare_gateway(stack.home, file, tell=told.append)

    changed = follow_gateway(stack.home, file)

    config = read_site_config(home)
    assert changed == ["north"]
    assert (config.gateway.url, config.threads) == (local_url(file), 3)
    assert home.config.read_text() == own.replace(stack.gateway_url, local_url(file))
    assert "every site" in told[0]
    assert follow_gateway(stack.home, file) == []


def test_sites_follow_their_gateway_to_another_certificate(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))
    home = site_home(stack.home, "north")
    before = home.config.read_bytes()
    (stack.home / "gateway" / "tls.crt").unlink()
    invite = prepare_gateway(stack.home, stack.file)

    assert follow_gateway(stack.home, stack.file) == ["north"]

    assert (home.root / "gateway.crt").read_text() == invite.certificate
    assert home.config.read_bytes() == before


def test_further_name_of_the_gateway_leaves_its_sites_alone(stack):
    make_local_site(stack, LocalSite("north", Path("rows.csv"), POLICY))
    file = stack.file.model_copy(update={"gateway_hosts": ("fedloom.example.org",)})
    prepare_gateway(stack.home, file)

    assert follow_gateway(stack.home, file) == []


def test_site_is_never_made_again(stack):
    site = LocalSite("north", Path("rows.csv"), POLICY)
    make_local_site(stack, site)

    with pytest.raises(CampaignError, match="never made again"):
        make_local_site(stack, site)
