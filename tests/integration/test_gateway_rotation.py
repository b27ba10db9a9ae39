"""A site behind a real gateway changes its keys, is seen, and is withdrawn."""

import json
import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running
from typer.testing import CliRunner

from fl_core.artifacts import keys
from fl_core.campaign.roster import latest_roster
from fl_core.errors import StoreError, StoreUnavailable
from fl_core.privacy.policy_documents import CoordinatorWitness, FolderWitness
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.plan import open_campaign
from fl_core.rounds.site_witness import witness_ledgers
from fl_core.updates.signing import public_hex, read_key
from flows.cli.main import app
from tasks.enrolment import NewSite, admit, make_site, read_enrolment
from tasks.gateway_access import ROTATION, GatewayAccess
from tasks.hello import own_hello
from tasks.key_change import admit_change, begin_change, finish_change, read_change
from tasks.said_hellos import keep_hello
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, open_site, site_settings
from tests.worlds import campaign_of

# The gateway looks for a new roster every 2 s.
ROSTER_S = 6.0


class RemoteSite:
    """A site's folder as `fedloom site init --gateway` makes it, enrolled."""

    def __init__(self, gateway, folder, *, identify):
        self.gateway, self.home = gateway, SiteHome(folder / "site")
        access = GatewayAccess(url=gateway.url, certificate=gateway.certificate, identify=identify)
        self.config = SiteConfig(site=folder.name, data="rows.csv", gateway=access)
        witnesses = (CoordinatorWitness(), FolderWitness(path=folder / "other-disk"))
        text = policy_text(epsilon=8.0, delta=1e-5, witnesses=witnesses)
        make_site(self.home, NewSite(self.config, text, is_new_data=True))
        admit(gateway.store, read_enrolment(self.home.enrolment))
        self.reached()

    def rosters(self):
        """Read the store as the site's next process would."""
        return open_store(site_settings(self.home, self.config)).list(keys.ROSTERS)

    def reached(self, call=None):
        """Call again until the gateway has looked at the roster."""
        deadline = time.monotonic() + ROSTER_S
        while True:
            try:
                return (call or self.rosters)()
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def is_refused(self):
        """Say whether the site is refused, once the gateway has looked at the roster."""
        deadline = time.monotonic() + ROSTER_S
        while time.monotonic() < deadline:
            try:
                self.rosters()
            except StoreUnavailable:
                return True
            time.sleep(0.2)
        return False


@pytest.fixture
def remote(gateway, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("remote") / f"remote-{secrets.token_hex(4)}"
    folder.mkdir()
    return RemoteSite(gateway, folder, identify=getattr(request, "param", "certificate"))


@pytest.mark.parametrize("remote", ["certificate", "token"], indirect=True)
def test_remote_site_changes_its_keys_and_the_old_ones_open_nothing(gateway, remote):
    old = public_hex(read_key(remote.home.key))
    before = {path.name: path.read_bytes() for path in remote.home.root.iterdir() if path.is_file()}
    begin_change(remote.home, remote.config)

    with pytest.raises(StoreError):
        finish_change(remote.home, remote.config)
    still = remote.rosters()
    admit_change(gateway.store, read_change(remote.home.root / ROTATION))
    was_refused = remote.is_refused()
    remote.reached(lambda: finish_change(remote.home, remote.config))

    site = open_site(remote.home, remote.config)
    witness_ledgers(site)
    assert still
    assert was_refused
    assert remote.rosters()
    entry = latest_roster(gateway.store).entry(remote.config.site)
    assert entry.signing_key == public_hex(site.key) != old
    assert [each.kind for each in site.ledger.entries()] == ["genesis", "rotated"]
    prefix = keys.witness(remote.config.site, site.policy.dataset, "row")
    # The coordinator's own witness took the entry of the new key.
    assert keys.witnessed_entry(prefix, 2) in gateway.store.list(prefix)
    # The old keys, put back, open nothing.
    for name in ("key.pem", "tls.crt", "tls.key"):
        (remote.home.root / name).write_bytes(before[name])
    assert remote.is_refused()


def test_certificate_alone_is_changed_and_the_ledger_does_not_notice(gateway, remote):
    old = (remote.home.root / "tls.crt").read_text()
    begin_change(remote.home, remote.config, only_certificate=True)

    admit_change(gateway.store, read_change(remote.home.root / ROTATION))
    remote.reached(lambda: finish_change(remote.home, remote.config))

    entry = latest_roster(gateway.store).entry(remote.config.site)
    assert remote.rosters()
    assert entry.certificate == (remote.home.root / "tls.crt").read_text() != old
    ledger = open_site(remote.home, remote.config).ledger
    assert [each.kind for each in ledger.entries()] == ["genesis"]


def fedloom(gateway, monkeypatch, *words):
    """Run a command at the coordinator of this gateway; return its document."""
    for name, value in {
        "FEDLOOM_STORE": "s3://behind-the-gateway",
        "FEDLOOM_S3_ENDPOINT": gateway.s3.endpoint,
        "FEDLOOM_S3_ACCESS_KEY": gateway.s3.access_key,
        "FEDLOOM_S3_SECRET_KEY": gateway.s3.secret_key,
        "PREFECT_API_URL": gateway.prefect_url,
    }.items():
        monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: gateway.prefect_url}):
        found = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    return json.loads(found.stdout)


def listed(gateway, monkeypatch, site):
    found = fedloom(gateway, monkeypatch, "sites")["sites"]
    return next(each for each in found if each["site"] == site)


def test_site_is_seen_idle_then_in_a_session_then_gone_when_revoked(gateway, remote, monkeypatch):
    name = remote.config.site
    enrolled = fedloom(gateway, monkeypatch, "enrol", remote.home.enrolment, "--yes")
    never = listed(gateway, monkeypatch, name)
    keep_hello(gateway.store, own_hello(name), now=datetime.now(UTC))
    gateway.prefect.send_worker_heartbeat(f"site-{name}", name, 10.0)
    idle = listed(gateway, monkeypatch, name)
    run = UUID(gateway.session(name))
    for state in (Pending(), Running()):
        gateway.prefect.set_flow_run_state(run, state)
    busy = listed(gateway, monkeypatch, name)

    revoked = fedloom(gateway, monkeypatch, "revoke", name, "--yes", "--reason", "left")
    gone = listed(gateway, monkeypatch, name)

    assert enrolled["fingerprint"] == idle["fingerprint"]
    assert (never["state"], never["last_seen"]) == ("away", None)
    assert (idle["state"], idle["online"], idle["complaints"]) == ("idle", True, [])
    assert idle["versions"] == own_hello(name).versions
    assert idle["last_seen"] is not None
    assert busy["state"] == "in session of any"
    assert revoked["ended_runs"] == 1
    assert gateway.prefect.read_flow_run(run).state.type == "CANCELLED"
    assert (gone["state"], gone["reason"]) == ("revoked", "left")
    assert remote.is_refused()


def test_site_of_a_version_that_does_not_fit_is_named_with_the_remedy(gateway, monkeypatch):
    hello = own_hello("south")
    old = hello.model_copy(update={"versions": hello.versions | {"torch": "1.13.1"}})
    keep_hello(gateway.store, old, now=datetime.now(UTC))

    found = listed(gateway, monkeypatch, "south")
    keep_hello(gateway.store, hello, now=datetime.now(UTC))
    after = listed(gateway, monkeypatch, "south")

    assert found["state"] == "versions do not fit"
    (complaint,) = found["complaints"]
    assert "south has torch 1.13.1" in complaint
    assert "install it at the site" in complaint
    assert after["complaints"] == []


def test_late_site_is_told_which_campaigns_it_joins(gateway, remote, monkeypatch):
    name = remote.config.site
    open_campaign(gateway.store, campaign_of(("north", name), id=f"with-{name}"))
    open_campaign(gateway.store, campaign_of(("north", "south"), id=f"without-{name}"))

    found = fedloom(gateway, monkeypatch, "enrol", remote.home.enrolment, "--yes")

    assert found["campaigns"] == [f"with-{name}"]
