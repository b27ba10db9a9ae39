"""Witnesses over a real S3 server: a peer's bucket, and the rights of sites in a stack's store."""

import pytest
from worlds import NOW

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.errors import LedgerCorrupt, StoreUnavailable, WitnessUnavailable
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy import parse_policy
from fl_core.privacy.witness import publish
from fl_core.updates.signing import generate_key
from flows.processes import ended_with_this_process, stop
from flows.servers import start_seaweed
from flows.stack_file import BUCKET, S3Keys, gateway_identity
from tasks.object_store import S3Location, connect, ensure_bucket
from tasks.settings import Settings
from tasks.witnesses import Surroundings, open_witnesses, prepare_witnesses

POLICY = """
dataset = "north-rows"
epsilon = 8
delta = 1e-5
base_models = "*"
suites = "*"
[[witness]]
kind = "coordinator"
[[witness]]
kind = "s3"
bucket = "peer"
prefix = "for/north"
endpoint = "{endpoint}"
credentials_file = "{file}"
"""
KEY = generate_key()


def new_ledger(store):
    return Ledger.create(store, dataset="north-rows", unit="row", key=KEY, now=NOW)


def charge(ledger, number):
    event = dpsgd_event(noise_multiplier=1.0, sampling_rate=0.1, steps=1)
    return ledger.reserve(
        campaign_digest="c" * 64,
        round_number=number,
        plan_sha256="a" * 64,
        event=event,
        require=lambda _: None,
    )


def write_keys(folder, access_key, secret_key):
    """Write a file of a bucket's keys as an operator does."""
    path = folder / "s3.credentials"
    path.touch(mode=0o600)
    path.write_text(f"{access_key}\n{secret_key}\n")


@pytest.fixture
def place(tmp_path, seaweed):
    """Return a policy with two witnesses: a folder in place of the campaigns' store, a bucket."""
    peer = S3Location("peer", "", seaweed.endpoint, seaweed.access_key, seaweed.secret_key)
    ensure_bucket(connect(peer))
    write_keys(tmp_path, seaweed.access_key, seaweed.secret_key)
    text = POLICY.format(endpoint=seaweed.endpoint, file="s3.credentials")
    around = Surroundings(tmp_path, Settings(store_url=f"file://{tmp_path}/store"))
    return parse_policy(text, source="policy"), around


def test_peers_bucket_acknowledges_a_charge_and_shows_a_rollback(place, tmp_path):
    policy, around = place
    witnesses = open_witnesses(policy, around)
    ledger = new_ledger(LocalStore(tmp_path / "ledger"))
    genesis = ledger.entries()[0]
    charge(ledger, 1)

    acknowledged = publish(ledger, witnesses, owner="north")
    reports = prepare_witnesses(policy, around, site="north")

    assert acknowledged == ("coordinator", "s3://peer/for/north")
    assert [report.entries for report in reports] == [2, 2]
    older = LocalStore(tmp_path / "older")
    older.put_once(keys.ledger_entry(1), LocalStore(tmp_path / "ledger").get(keys.ledger_entry(1)))
    rolled_back = Ledger(older, dataset=genesis.dataset, unit=genesis.unit, key=KEY)
    with pytest.raises(LedgerCorrupt, match="rolled back"):
        publish(rolled_back, witnesses[1:], owner="north")


def test_peers_bucket_with_wrong_keys_is_away(place, tmp_path):
    policy, around = place
    write_keys(tmp_path, "tests", "not-the-secret")

    with pytest.raises(WitnessUnavailable, match="peer"):
        publish(
            new_ledger(LocalStore(tmp_path / "other")),
            open_witnesses(policy, around),
            owner="north",
        )


@pytest.fixture(scope="module")
def store_of_a_stack(tmp_path_factory):
    """Return a store like a local stack's, with the rights of its gateway."""
    admin, own = S3Keys.draw(), S3Keys.draw()
    with ended_with_this_process():
        server = start_seaweed(
            tmp_path_factory.mktemp("stack-s3"),
            access_key=admin.access_key,
            secret_key=admin.secret_key,
            identities=[gateway_identity(own)],
        )
        ensure_bucket(
            connect(S3Location(BUCKET, "", server.url, admin.access_key, admin.secret_key))
        )
        yield connect(S3Location(BUCKET, "", server.url, own.access_key, own.secret_key))
        stop(server)


def test_gateway_of_a_stack_writes_copies_and_no_entry_of_a_ledger(store_of_a_stack):
    prefix = keys.witness("north", "north-rows", "row")

    assert store_of_a_stack.put_once(keys.witnessed_entry(prefix, 1), b"{}")
    assert store_of_a_stack.get(keys.witnessed_entry(prefix, 1)) == b"{}"
    for other in (keys.LEDGER, keys.FEDERATION, keys.ROSTERS):
        with pytest.raises(StoreUnavailable):
            store_of_a_stack.put_once(f"{other}000001.json", b"{}")
