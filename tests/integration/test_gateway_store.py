"""The site's store through a real gateway over TLS: the contract, as far as its keys go."""

import contextlib
import secrets
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from site_gateway import Gateway

from fl_core.artifacts import keys
from fl_core.artifacts.store import exists
from fl_core.campaign.roster import revoke
from fl_core.errors import ObjectCorrupt, ObjectMissing, RoundClosed, StoreUnavailable
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.updates.signing import generate_key, read_key
from tasks import gateway_client
from tasks.certificates import make_certificate
from tasks.gateway_client import GatewayClient
from tasks.gateway_store import GatewayStore
from tasks.outgoing import OutgoingLog, read_outgoing
from tests.signed_copies import copy_at
from tests.worlds import campaign_of


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="module", params=["certificate", "token"])
def door(gateway, request):
    """A site that is enrolled; both ways of showing who it is."""
    door = gateway.make_site(f"north-{request.param}", identify=request.param)
    gateway.enrol(door)
    return door


@pytest.fixture(scope="module")
def open_campaign_round(gateway, door):
    """A campaign of the site with an open round 1."""
    campaign = campaign_of((door.site, "south"), id=f"c-{door.site}")
    assembly = open_campaign(gateway.store, campaign)
    return open_round(assembly, gateway.store, round_number=1, now=datetime.now(UTC))


@pytest.fixture
def store(door):
    return GatewayStore.through(door)


def copies(door):
    return f"witness/{door.site}/rows-{secrets.token_hex(4)}/row/"


def copy(door, key, *, minute=0):
    return copy_at(key, read_key(door.home / "key.pem"), minute=minute)


def test_object_comes_back_as_it_was_written_and_the_coordinator_has_it(store, gateway, door):
    key = copies(door) + "000001.json"
    data = copy(door, key)

    assert store.put_once(key, data)

    assert store.get(key) == data
    assert gateway.store.get(key) == data


def test_any_bytes_that_the_store_holds_come_as_they_are(store, gateway, door):
    key = copies(door) + "000001.json"
    data = bytes(range(256)) * 3
    gateway.store.put_once(key, data)

    assert store.get(key) == data


def test_second_write_is_refused_and_changes_nothing(store, door):
    key = copies(door) + "000001.json"
    store.put_once(key, copy(door, key))

    assert not store.put_once(key, copy(door, key, minute=1))
    assert store.get(key) == copy(door, key)


def test_missing_object_is_missing_and_named(store, door):
    key = copies(door) + "000001.json"

    with pytest.raises(ObjectMissing, match=key):
        store.get(key)


def test_object_longer_than_asked_is_refused_and_one_of_that_length_is_read(store, gateway, door):
    key = copies(door) + "000001.json"
    gateway.store.put_once(key, b"12345")

    assert store.get(key, max_bytes=5) == b"12345"
    with pytest.raises(ObjectCorrupt, match="has 5 bytes, at most 4 are read"):
        store.get(key, max_bytes=4)


def test_list_is_sorted_and_goes_by_prefix(store, door):
    prefix = copies(door)
    written = [f"{prefix}{seq:06d}.json" for seq in (10, 2, 1)]
    for key in written:
        store.put_once(key, copy(door, key))

    assert store.list(prefix) == sorted(written)
    assert store.list(prefix + "00000") == sorted(written)[:2]
    assert exists(store, written[0])
    assert not exists(store, f"{prefix}00001")


def test_of_eight_racing_writers_exactly_one_wins(door):
    key = copies(door) + "000001.json"
    stores = [GatewayStore.through(door) for _ in range(8)]
    written = [copy(door, key, minute=n) for n in range(8)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: stores[n].put_once(key, written[n]), range(8)))

    assert sum(won) == 1
    assert stores[0].get(key) == written[won.index(True)]


def test_key_that_no_store_could_hold_is_refused_before_anything_is_sent(store, door):
    before = len(read_outgoing(door.home))

    for key in ("", "/a", "../a", "a//b", "a\nb"):
        with pytest.raises(ValueError, match="is no key of a store"):
            store.get(key)

    assert len(read_outgoing(door.home)) == before


def test_nothing_is_taken_back(store, door):
    key = copies(door) + "000001.json"
    store.put_once(key, copy(door, key))

    with pytest.raises(StoreUnavailable, match="cannot take back"):
        store.discard(key)

    assert store.get(key) == copy(door, key)


def test_copy_that_the_site_did_not_sign_is_refused_and_nothing_is_kept(store, gateway, door):
    key = copies(door) + "000001.json"

    for data in (b"x", copy_at(key, generate_key())):
        with pytest.raises(StoreUnavailable, match=r"no entry of a ledger|signed by no key"):
            store.put_once(key, data)

    assert not exists(gateway.store, key)


def test_key_of_another_site_is_refused_for_reading_writing_and_waiting(store):
    key = "witness/somebody-else/rows/row/000001.json"

    for call in (
        lambda: store.get(key),
        lambda: store.put_once(key, b"x"),
        lambda: store.wait([key], seconds=0),
        lambda: store.list("witness/somebody-else/"),
    ):
        with pytest.raises(StoreUnavailable, match="refuses to"):
            call()


def test_update_of_an_open_round_is_taken_and_that_of_another_round_is_not(
    store, door, open_campaign_round
):
    campaign = f"c-{door.site}"
    budget = keys.budget(campaign, 1, door.site)

    assert store.put_once(budget, b"{}")
    with pytest.raises(RoundClosed, match="no round 2"):
        store.put_once(keys.budget(campaign, 2, door.site), b"{}")


def test_update_that_is_too_long_is_refused_for_good(store, door, open_campaign_round):
    # 3 x 4 x 2 and a head of a few values: a megabyte of header is granted, two are not.
    with pytest.raises(ObjectCorrupt, match="too long"):
        store.put_once(keys.payload(f"c-{door.site}", 1, door.site), bytes(3 << 20))


def test_wait_answers_when_an_object_appears_and_with_nothing_when_none_does(store, gateway, door):
    present, absent = copies(door) + "000001.json", copies(door) + "000001.json"
    written_at = []

    def write():
        time.sleep(0.5)
        written_at.append(time.monotonic())
        gateway.store.put_once(present, b"x")

    thread = threading.Thread(target=write)
    thread.start()
    found = store.wait([absent, present], seconds=20)
    thread.join()

    assert found == [present]
    assert store.wait([absent], seconds=0.1) == []


def test_every_request_is_in_the_record_with_length_hash_and_status(store, door):
    from fl_core.artifacts.documents import sha256_hex

    key = copies(door) + "000001.json"
    data = copy(door, key)
    store.put_once(key, data)
    store.put_once(key, data)
    with pytest.raises(ObjectMissing):
        store.get(copies(door) + "000009.json")

    last = read_outgoing(door.home)[-3:]

    assert [(each.method, each.status) for each in last] == [
        ("PUT", 201),
        ("PUT", 412),
        ("GET", 404),
    ]
    assert last[0].key == key
    assert (last[0].payload_bytes, last[0].payload_sha256) == (len(data), sha256_hex(data))
    assert data not in (door.home / "outgoing.jsonl").read_bytes()


def test_nothing_is_sent_that_cannot_be_recorded(gateway, door):
    key = copies(door) + "000001.json"
    record = door.home / "outgoing.jsonl"
    kept = record.read_bytes()
    record.unlink()
    record.mkdir()
    try:
        with pytest.raises(StoreUnavailable, match="nothing leaves unrecorded"):
            GatewayStore.through(door).put_once(key, b"x")
    finally:
        record.rmdir()
        record.write_bytes(kept)

    assert not exists(gateway.store, key)


def test_site_that_is_not_enrolled_is_told_what_to_do(gateway):
    stranger = GatewayStore.through(gateway.make_site("stranger"))
    unsigned = GatewayStore.through(gateway.make_site("unsigned", identify="token"))

    with pytest.raises(StoreUnavailable, match="does not know this site's certificate") as tls:
        stranger.list(keys.ROSTERS)
    with pytest.raises(StoreUnavailable, match="refuses to list keys") as token:
        unsigned.list(keys.ROSTERS)

    assert "give enrol.json to the coordinator" in tls.value.hint + token.value.hint


def test_revoked_site_is_refused_at_its_next_request(gateway):
    door = gateway.make_site("leaver")
    gateway.enrol(door)
    store = GatewayStore.through(door)
    assert store.list(keys.ROSTERS)

    revoke(gateway.store, "leaver", reason="left", now=datetime.now(UTC))
    time.sleep(2.2)

    with pytest.raises(StoreUnavailable):
        store.list(keys.ROSTERS)


def test_new_certificate_is_used_without_a_restart(gateway):
    door = gateway.make_site("rotator")
    store = GatewayStore.through(door)
    with pytest.raises(StoreUnavailable):
        store.list(keys.ROSTERS)

    make_certificate(door.home / "tls.crt", door.home / "tls.key", common_name="rotator")
    gateway.enrol(door)

    assert store.list(keys.ROSTERS)


def test_gateway_with_another_certificate_is_somebody_else(gateway, tmp_path):
    door = gateway.make_site("careful")
    make_certificate(
        door.home / "gateway.crt", tmp_path / "key", common_name="x", hosts=("127.0.0.1",)
    )

    with pytest.raises(StoreUnavailable, match="somebody else answers") as caught:
        GatewayStore.through(door).list(keys.ROSTERS)

    assert "compare the fingerprint" in caught.value.hint


@pytest.mark.parametrize("door", ["certificate"], indirect=True)
def test_read_survives_a_restart_of_the_gateway(gateway, door):
    store = GatewayStore.through(door)
    before = store.list(keys.ROSTERS)

    gateway.stop()
    restart = threading.Timer(0.5, gateway.start)
    restart.start()
    try:
        after = store.list(keys.ROSTERS)
    finally:
        restart.join()

    assert after == before


def test_address_where_nothing_listens_is_named(gateway):
    door = gateway.make_site("lost")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    access = door.access.model_copy(update={"url": f"https://127.0.0.1:{port}"})
    lost = door.model_copy(update={"access": access})

    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port} does not answer") as caught:
        GatewayStore.through(lost).list(keys.ROSTERS)

    assert "firewall" in caught.value.hint


def test_wrong_clock_is_told_once(door, monkeypatch, caplog):
    # The gateway runs on this machine's clock, so the tolerance is moved and not the clock.
    monkeypatch.setattr(gateway_client, "ALLOWED_SKEW_S", -1.0)
    client = GatewayClient(door, OutgoingLog(door.home, process="test"))
    store = GatewayStore(client)

    for _ in range(2):
        store.list(keys.ROSTERS)

    told = [record.getMessage() for record in caplog.records if "clocks differ" in record.msg]
    assert len(told) == 1
    assert "time synchronisation" in told[0]


def test_stranger_with_many_connections_leaves_places_for_sites(gateway):
    door = gateway.make_site("east")
    gateway.enrol(door)
    context = ssl.create_default_context(cafile=door.home / "gateway.crt")
    with contextlib.ExitStack() as open_ones:
        for _ in range(70):
            plain = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
            last = open_ones.enter_context(
                context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=True)
            )

        # 64 of one address: the others were closed at once, long before the time for a header.
        with contextlib.suppress(ConnectionResetError):
            assert last.recv(1) == b""
        assert GatewayStore.through(door).list(keys.ROSTERS)

    record, deadline = gateway.folder / "gateway" / "record.jsonl", time.monotonic() + 30
    # Such lines are counted for a second.
    while "too many connections" not in record.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
