"""`fedloom site init`: the way to the coordinator that a new site is given."""

import json
import re

import pytest
from typer.testing import CliRunner

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from flows.cli.main import app
from flows.processes import free_port
from tasks.certificates import certificate_sha256, make_certificate
from tasks.invite import Invite
from tasks.site_config import SiteHome, read_site_config


def init(folder, *options):
    """Run `site init` over a folder with rows, and return the site's folder and the result."""
    (folder / "rows.csv").write_text("text,label\na,x\n", encoding="utf-8")
    stated = ["north", "--data", str(folder / "rows.csv"), "--epsilon", "8", "--delta", "1e-5"]
    own = ["--home", str(folder / "site"), "--witness", str(folder / "witness"), "--json"]
    result = CliRunner().invoke(app, ["site", "init", *stated, *own, *map(str, options)])
    return SiteHome(folder / "site"), result


@pytest.fixture
def invite(tmp_path):
    """The file of an invite to a gateway where nobody listens."""
    pem = make_certificate(
        tmp_path / "g.crt", tmp_path / "g.key", common_name="gateway", hosts=["127.0.0.1"]
    )
    path = tmp_path / "invite.json"
    path.write_bytes(to_bytes(Invite(url=f"https://127.0.0.1:{free_port()}", certificate=pem)))
    return path


def test_site_that_was_invited_knows_the_gateway_and_nothing_else(tmp_path, invite):
    home, result = init(tmp_path, "--gateway", invite)

    assert result.exit_code == 0, result.output
    config, stated = read_site_config(home), json.loads(invite.read_bytes())
    assert (config.gateway.url, config.gateway.identify) == (stated["url"], "certificate")
    assert (home.root / config.gateway.certificate).read_text() == stated["certificate"]
    assert (config.store, config.prefect_api_url) == (None, None)
    assert {"tls.crt", "tls.key", "enrol.json"} <= {path.name for path in home.root.iterdir()}
    shown = re.sub(r"\s", "", result.stderr)
    assert f"sha-256{certificate_sha256(stated['certificate'])}" in shown
    assert "s3.credentials" not in shown


def test_nothing_is_pinned_for_a_site_that_is_not_made(tmp_path, invite):
    invite.write_text(invite.read_text().replace("https://127", "https://127.0.0.1/127"))

    home, result = init(tmp_path, "--gateway", invite)

    assert isinstance(result.exception, CampaignError)
    assert not home.root.exists()


def test_site_behind_a_proxy_signs_its_requests(tmp_path, invite):
    home, result = init(tmp_path, "--gateway", invite, "--sign-requests")

    assert result.exit_code == 0, result.output
    assert read_site_config(home).gateway.identify == "token"


def test_site_needs_a_way_to_its_coordinator(tmp_path):
    home, result = init(tmp_path)

    assert isinstance(result.exception, CampaignError)
    assert "--gateway" in str(result.exception)
    assert not home.root.exists()


def test_site_on_the_coordinators_machine_may_use_its_store(tmp_path):
    home, result = init(tmp_path, "--store", (tmp_path / "store").as_uri())

    assert result.exit_code == 0, result.output
    config = read_site_config(home)
    assert (config.gateway, config.store.url) == (None, (tmp_path / "store").as_uri())
    assert "s3.credentials" in re.sub(r"\s", "", result.stderr)
