"""What the coordinator's witness takes: entries of the site's ledger, signed, and near."""

from datetime import UTC, datetime

import pytest
from starlette.exceptions import HTTPException

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import Roster, RosterEntry
from fl_core.privacy.ledger_documents import LedgerEntry, LostRange
from fl_core.updates.signing import generate_key, public_hex, sign
from flows.gateway.copies import Copies
from tests.signed_copies import copy_at

EARLIER, LIVING, OTHER = (generate_key() for _ in range(3))
SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def at(seq: int, dataset: str = "rows") -> str:
    return f"witness/north/{dataset}/row/{seq:06d}.json"


def entries() -> tuple[RosterEntry, ...]:
    earlier = RosterEntry(
        site="north", signing_key=public_hex(EARLIER), since=SINCE, revoked=SINCE, reason="changed"
    )
    living = RosterEntry(site="north", signing_key=public_hex(LIVING), since=SINCE)
    other = RosterEntry(site="south", signing_key=public_hex(OTHER), since=SINCE)
    return earlier, living, other


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def copies(store):
    roster = Roster(version=1, entries=entries())
    return Copies(store, lambda: roster)


def refusal(copies: Copies, key: str, data: bytes) -> tuple[int, str]:
    with pytest.raises(HTTPException) as refused:
        copies.require_sound(key, data, site="north")
    return refused.value.status_code, refused.value.detail


@pytest.mark.parametrize("key", [EARLIER, LIVING], ids=["earlier", "living"])
def test_entry_signed_by_a_key_that_the_site_has_or_had_is_taken(copies, key):
    copies.require_sound(at(1), copy_at(at(1), key), site="north")


@pytest.mark.parametrize("data", [b"", b"x", b"{}", b"[" * 100_000], ids=repr)
def test_what_is_no_entry_is_refused(copies, data):
    assert refusal(copies, at(1), data) == (422, "this is no entry of a ledger")


def test_entry_that_another_site_signed_is_refused(copies):
    status, detail = refusal(copies, at(1), copy_at(at(1), OTHER))

    assert (status, "signed by no key" in detail) == (422, True)


@pytest.mark.parametrize("key", [at(2), at(1, "others"), at(1).replace("/row/", "/site/")])
def test_entry_under_a_key_that_is_not_its_own_is_refused(copies, key):
    assert refusal(copies, key, copy_at(at(1), LIVING)) == (
        422,
        "the entry belongs under another key",
    )


def test_entry_far_above_what_is_held_is_refused_and_the_next_ones_are_taken(store, copies):
    # 256 above nothing.
    copies.require_sound(at(256), copy_at(at(256), LIVING), site="north")
    assert refusal(copies, at(257), copy_at(at(257), LIVING)) == (
        422,
        "entry 257 is more than 256 above the highest held, 0",
    )

    # What another gateway wrote is found in the store.
    store.put_once(at(10), b"held")
    copies.require_sound(at(266), copy_at(at(266), LIVING), site="north")
    copies.written(at(266))
    copies.require_sound(at(522), copy_at(at(522), LIVING), site="north")
    assert refusal(copies, at(999_999_999), copy_at(at(999_999_999), LIVING))[0] == 422


def recovery(seq: int, *, lost: tuple[LostRange, ...], n_aside: int = 0) -> bytes:
    plain = from_bytes(LedgerEntry, copy_at(at(seq), LIVING), what="entry")
    changes = {
        "kind": "recovered",
        "lost": lost,
        "charges": (),
        "set_aside": tuple(f"{number:064x}" for number in range(n_aside)),
    }
    return to_bytes(sign(plain.model_copy(update=changes), LIVING))


def test_recovery_stands_above_what_it_names_as_lost(copies):
    lost = (LostRange(first=1, last=900),)
    copies.require_sound(at(901), recovery(901, lost=lost), site="north")

    far = (LostRange(first=300, last=900),)
    assert refusal(copies, at(901), recovery(901, lost=far))[0] == 422


def test_only_a_recovery_is_longer_than_sixteen_kibibytes(copies):
    long = recovery(1, lost=(), n_aside=1000)
    assert len(long) > 16 << 10
    copies.require_sound(at(1), long, site="north")

    unit = "u" * (17 << 10)
    key = at(1).replace("/row/", f"/{unit}/")
    assert refusal(copies, key, copy_at(key, LIVING))[0] == 413
