"""A hostile site at the store's door: each try is refused, recorded and without effect."""

import struct
import threading
import time

import httpx
import numpy as np
import pytest
from gateway_stack import hashed

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex, to_bytes
from fl_core.artifacts.store import exists
from fl_core.rounds.documents import Collected, SiteAnswer
from fl_core.rounds.site_round import client_round
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.payload import encode_tensors
from fl_core.updates.signing import sign
from tasks.gateway_store import GatewayStore
from tests.worlds import NO_PRIVACY, FakeWork


def object_path(key: str) -> str:
    # A client would climb by itself; written this way the gateway has to.
    return f"/store/objects/{key.replace('..', '%2e%2e')}"


def put(client: httpx.Client, key: str, body: bytes) -> httpx.Response:
    return client.put(object_path(key), content=body, headers=hashed(body))


def take_part(campaign, site: str, number: int = 1):
    """Have a site do its round honestly, through the product's own client."""
    return client_round(
        campaign.site(site),
        FakeWork(campaign.assembly.shapes(number)),
        assembly=campaign.assembly,
        store=GatewayStore.through(campaign.stack.door(site)),
        plan=campaign.plan(number),
    )


@pytest.fixture(scope="module")
def answered(gateway):
    """A campaign whose first round the site south has answered."""
    campaign = gateway.campaign()
    assert take_part(campaign, "south").status == "uploaded"
    return campaign


def test_honest_update_passes_the_gateway_and_is_accepted(answered):
    assert answered.judged("south").status == "accepted"


def closed_keys(campaign_id: str) -> dict[str, str]:
    round_one = keys.round_prefix(campaign_id, 1)
    return {
        "payload of another": keys.payload(campaign_id, 1, "south"),
        "manifest of another": keys.manifest(campaign_id, 1, "south"),
        "budget of another": keys.budget(campaign_id, 1, "south"),
        "absent object of another": keys.declined(campaign_id, 1, "south"),
        "charge": round_one + "charge.json",
        "release": round_one + "release.safetensors",
        "evaluation": round_one + "evaluation.json",
        "witness of another": "witness/south/data/row/000001.json",
        "hellos": "hellos/north/x.json",
        "draft of a campaign": "drafts/x/campaign.toml",
        "probe": "probes/write-once",
        "climbing": "campaigns/x/../../rosters/000001.json",
        "nothing": "",
    }


@pytest.mark.parametrize("name", closed_keys("x"))
@pytest.mark.parametrize("method", ["GET", "PUT", "wait"])
def test_key_that_is_not_the_sites_is_closed_whether_it_exists_or_not(
    gateway, answered, name, method
):
    key = closed_keys(answered.id)[name]
    before = exists(gateway.store, key) if name not in {"climbing", "nothing"} else None

    with gateway.client("north") as client:
        if method == "GET":
            answer = client.get(object_path(key))
        elif method == "PUT":
            answer = put(client, key, b"mine")
        else:
            answer = client.get("/store/wait", params={"key": key, "seconds": 0})

    assert answer.status_code == 403
    assert answer.json() in ({"detail": "this key is not for this site"}, NOT_A_PATH)
    assert gateway.recorded(site="north", status=403, detail=answer.json()["detail"])
    if before is not None:
        assert exists(gateway.store, key) == before


NOT_A_PATH = {"detail": "this is not a request that sites make"}


def test_listing_shows_a_site_its_own_and_the_coordinators_keys_only(gateway, answered):
    with gateway.client("north") as client:
        seen = client.get("/store/keys", params={"prefix": f"campaigns/{answered.id}/"}).json()
    with gateway.client("south") as client:
        own = client.get("/store/keys", params={"prefix": f"campaigns/{answered.id}/"}).json()

    assert not [key for key in seen if "/updates/" in key]
    assert keys.plan(answered.id, 1) in seen
    assert keys.manifest(answered.id, 1, "south") in own


@pytest.mark.parametrize("prefix", ["", "witness/south/", "hellos/", "../", "drafts/"])
def test_listing_wider_than_a_site_needs_is_refused(gateway, prefix):
    with gateway.client("north") as client:
        answer = client.get("/store/keys", params={"prefix": prefix})

    assert answer.status_code == 403
    assert gateway.recorded(site="north", path="/store/keys", keys=[prefix], status=403)


def test_what_a_site_wrote_it_can_neither_replace_nor_take_back(gateway, answered):
    key = keys.manifest(answered.id, 1, "south")
    written = gateway.store.get(key)

    with gateway.client("south") as client:
        again = put(client, key, b"another")
        gone = client.delete(object_path(key))

    assert (again.status_code, gone.status_code) == (412, 403)
    assert gateway.store.get(key) == written
    assert gateway.recorded(site="south", method="PUT", status=412)
    assert gateway.recorded(site="south", method="DELETE", status=403)


def test_round_that_does_not_ask_a_site_takes_nothing_and_does_not_say_that_it_exists(gateway):
    # One site of two is asked: the rule of the campaign draws it, so look whom it drew.
    campaign = gateway.campaign(cohort={"selection": {"kind": "uniform", "size": 1}, "quorum": 1})
    asked = campaign.plan().cohort[0]
    other = {"north": "south", "south": "north"}[asked]

    with gateway.client(other) as client:
        not_asked = put(client, keys.manifest(campaign.id, 1, other), b"{}")
        no_round = put(client, keys.manifest(campaign.id, 2, other), b"{}")

    assert (not_asked.status_code, no_round.status_code) == (409, 409)
    assert not_asked.json()["detail"].replace("1", "2", 1) == no_round.json()["detail"]
    assert not exists(gateway.store, keys.manifest(campaign.id, 1, other))
    assert gateway.recorded(site=other, status=409, detail=not_asked.json()["detail"])


def test_round_that_is_collected_takes_no_more(gateway):
    campaign = gateway.campaign()
    missing = dict.fromkeys(campaign.plan().cohort, SiteAnswer(status="missing"))
    collected = Collected(round=1, answers=missing, has_quorum=False)
    gateway.store.put_once(keys.collected(campaign.id, 1), to_bytes(collected))

    with gateway.client("north") as client:
        late = put(client, keys.manifest(campaign.id, 1, "north"), b"{}")

    assert late.status_code == 409
    assert not exists(gateway.store, keys.manifest(campaign.id, 1, "north"))


def test_answer_that_is_sent_again_after_its_round_is_said_to_be_there(gateway):
    campaign = gateway.campaign()
    key = keys.declined(campaign.id, 1, "north")
    missing = dict.fromkeys(campaign.plan().cohort, SiteAnswer(status="missing"))
    collected = Collected(round=1, answers=missing, has_quorum=False)

    with gateway.client("north") as client:
        first = put(client, key, b"{}")
        gateway.store.put_once(keys.collected(campaign.id, 1), to_bytes(collected))
        again = put(client, key, b"{}")

    assert (first.status_code, again.status_code) == (201, 412)


def test_round_past_its_deadline_takes_no_more(gateway):
    campaign = gateway.campaign(cohort={"deadline_s": 1})
    deadline = campaign.plan().deadline.timestamp()
    while time.time() <= deadline:
        time.sleep(0.05)

    with gateway.client("north") as client:
        late = put(client, keys.payload(campaign.id, 1, "north"), b"late")

    assert late.status_code == 409


def replay(gateway, *, source, source_round, target, target_round):
    """Put a site's signed answer of one round under the keys of another."""
    with gateway.client("south") as client:
        for key in (keys.payload, keys.budget, keys.manifest):
            data = gateway.store.get(key(source.id, source_round, "south"))
            assert put(client, key(target.id, target_round, "south"), data).status_code == 201


def test_manifest_of_another_campaign_counts_for_nothing(gateway, answered):
    other = gateway.campaign()
    other.plan()

    replay(gateway, source=answered, source_round=1, target=other, target_round=1)

    assert other.judged("south") == SiteAnswer(status="rejected", reason="campaign")


def test_manifest_of_an_earlier_round_counts_for_nothing(gateway, answered):
    answered.plan(2)

    replay(gateway, source=answered, source_round=1, target=answered, target_round=2)

    assert answered.judged("south", 2) == SiteAnswer(status="rejected", reason="round")


def test_answer_for_another_site_under_its_own_name_counts_for_nothing(gateway, answered):
    campaign = gateway.campaign()
    campaign.plan()
    assert take_part(campaign, "south").status == "uploaded"
    manifest = gateway.store.get(keys.manifest(campaign.id, 1, "south"))

    with gateway.client("north") as client:
        assert put(client, keys.manifest(campaign.id, 1, "north"), manifest).status_code == 201

    assert campaign.judged("north").status == "rejected"
    assert campaign.judged("south").status == "accepted"


def full_of(shapes, value: float) -> bytes:
    return encode_tensors({n: np.full(s, value, dtype=np.float32) for n, s in shapes.items()})


def hostile_payloads(shapes) -> dict[str, tuple[bytes, str]]:
    # Four terabytes in a hundred bytes.
    bomb = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    return {
        "NaN": (full_of(shapes, float("nan")), "not_finite"),
        # A pickle that would write a file if anybody loaded it.
        "pickle": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "payload"),
        "bomb": (struct.pack("<Q", len(bomb)) + bomb, "payload"),
        "length of a header that is not there": (struct.pack("<Q", 1 << 62) + b"{}", "payload"),
    }


@pytest.mark.parametrize("kind", hostile_payloads({}))
def test_hostile_payload_is_kept_as_bytes_and_rejected_at_collection(gateway, kind):
    campaign = gateway.campaign(privacy=NO_PRIVACY)
    assert take_part(campaign, "south").status == "uploaded"
    honest = read_document(gateway.store, keys.manifest(campaign.id, 1, "south"), UpdateManifest)
    payload, reason = hostile_payloads(campaign.assembly.shapes(1))[kind]
    stated = {"site": "north", "payload_sha256": sha256_hex(payload)}
    forged = honest.model_copy(update=stated | {"payload_bytes": len(payload)})
    manifest = to_bytes(sign(forged, gateway.sites["north"].key))

    with gateway.client("north") as client:
        assert put(client, keys.payload(campaign.id, 1, "north"), payload).status_code == 201
        assert put(client, keys.manifest(campaign.id, 1, "north"), manifest).status_code == 201

    assert campaign.judged("north") == SiteAnswer(status="rejected", reason=reason)
    assert campaign.judged("south").status == "accepted"


def test_payload_longer_than_an_honest_update_is_refused_unread(gateway):
    campaign = gateway.campaign()
    campaign.plan()
    # float32 of all values and a header of 1 MiB, as collection allows.
    values = sum(int(np.prod(shape)) for shape in campaign.assembly.shapes(1).values())
    longest = 4 * values + (1 << 20)
    key = keys.payload(campaign.id, 1, "north")

    with gateway.client("north") as client:
        refused = put(client, key, b"\0" * (longest + 1))
        taken = put(client, key, b"\0" * longest)

    assert (refused.status_code, taken.status_code) == (413, 201)
    assert gateway.recorded(site="north", status=413, path=object_path(key))


def test_body_that_is_not_what_its_hash_says_is_not_kept(gateway):
    key = "witness/north/data/row/000777.json"
    with gateway.client("north") as client:
        other = client.put(object_path(key), content=b"one", headers=hashed(b"two"))
        none = client.put(object_path(key), content=b"one")
        chunked = client.put(object_path(key), content=iter([b"one"]), headers=hashed(b"one"))

    assert (other.status_code, none.status_code, chunked.status_code) == (422, 422, 411)
    assert not exists(gateway.store, key)


def test_waiting_ends_as_soon_as_one_of_the_keys_is_written(gateway):
    campaign = gateway.campaign()
    awaited = [keys.plan(campaign.id, 1), keys.stop(campaign.id, "run")]
    timer = threading.Timer(1.0, campaign.plan)
    timer.start()

    found = GatewayStore.through(gateway.door("north")).wait(awaited, seconds=30)

    timer.join()
    assert found == awaited[:1]


def test_waiting_for_what_never_comes_ends_with_nothing(gateway):
    campaign = gateway.campaign()
    with gateway.client("north") as client:
        wanted = {"key": keys.plan(campaign.id, 1), "seconds": 0.2}
        answer = client.get("/store/wait", params=wanted)

    assert (answer.status_code, answer.json()) == (200, [])


def test_campaign_that_does_not_name_a_site_is_closed_to_it(gateway):
    campaign = gateway.campaign(sites=("south",))
    key = keys.plan(campaign.id, 1)
    campaign.plan()

    with gateway.client("north") as client:
        statuses = {
            client.get(object_path(keys.campaign(campaign.id))).status_code,
            client.get(object_path(key)).status_code,
            client.get("/store/wait", params={"key": key, "seconds": 0}).status_code,
            client.get(object_path(keys.plan("not-there", 1))).status_code,
        }
        below = client.get("/store/keys", params={"prefix": f"campaigns/{campaign.id}/"})
        everywhere = client.get("/store/keys", params={"prefix": "campaigns/"})
    with gateway.client("south") as client:
        own = client.get("/store/keys", params={"prefix": "campaigns/"})

    assert statuses == {403}
    assert below.json() == []
    assert not [found for found in everywhere.json() if campaign.id in found.split("/")]
    assert key in own.json()
