"""A site keeps copies of the federation's ledger and refuses one that was undone."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt
from fl_core.privacy.federation import (
    Federation,
    FederationLimits,
    charge_release,
    create_federation,
)
from fl_core.privacy.federation_witness import witness_federation
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.updates.records import GaussianEvent
from fl_core.updates.signing import generate_key, sign
from tests.worlds import NOW

LIMITS = FederationLimits(epsilon=50.0, delta=1e-3)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def federation(store) -> Federation:
    return create_federation(store, limits=LIMITS, key=generate_key(), now=NOW)


def charge(federation: Federation, number: int) -> LedgerEntry:
    return charge_release(
        federation,
        campaign_digest="c" * 64,
        round_number=number,
        plan_sha256="a" * 64,
        event=GaussianEvent(noise_multiplier=1.0),
    )


def copy_of(store: MemoryStore) -> MemoryStore:
    copied = MemoryStore()
    for key in store.list(""):
        copied.put_once(key, store.get(key))
    return copied


def entry_key(seq: int) -> str:
    return keys.FEDERATION + keys.ledger_entry(seq)


def test_site_copies_what_is_new_and_each_entry_once(store, federation):
    own = MemoryStore()

    assert witness_federation(store, own) == 1
    charge(federation, 1)
    assert witness_federation(store, own) == 2
    assert witness_federation(store, own) == 2
    ledger = Below(store, keys.FEDERATION)
    for seq in (1, 2):
        assert own.get(keys.ledger_entry(seq)) == ledger.get(keys.ledger_entry(seq))


def test_site_that_comes_late_copies_the_whole_ledger(store, federation):
    for number in (1, 2, 3):
        charge(federation, number)

    assert witness_federation(store, MemoryStore()) == 4


def test_ledger_that_was_set_back_is_refused(store, federation):
    own, backup = MemoryStore(), copy_of(store)
    charge(federation, 1)
    witness_federation(store, own)

    with pytest.raises(LedgerCorrupt, match=r"entry 2 .* is gone"):
        witness_federation(backup, own)


def test_ledger_that_was_set_back_and_written_on_is_refused(store, federation):
    own, backup = MemoryStore(), copy_of(store)
    charge(federation, 1)
    witness_federation(store, own)
    restored = Federation(
        federation.policy,
        federation.key,
        type(federation.ledger)(
            Below(backup, keys.FEDERATION), dataset="clients", unit="site", key=federation.key
        ),
    )
    charge(restored, 2)
    charge(restored, 3)

    with pytest.raises(LedgerCorrupt, match=r"entry 2 .* is another one"):
        witness_federation(backup, own)


def test_second_ledger_by_another_key_is_refused(store, federation):
    own, other = MemoryStore(), MemoryStore()
    witness_federation(store, own)
    create_federation(other, limits=LIMITS, key=generate_key(), now=NOW)

    with pytest.raises(LedgerCorrupt, match=r"signed by key .* this site knows"):
        witness_federation(other, own)


def test_second_genesis_by_the_same_key_is_refused(store, federation):
    own, other = MemoryStore(), MemoryStore()
    charge(federation, 1)
    witness_federation(store, own)
    again = create_federation(
        other, limits=LIMITS, key=federation.key, now=NOW.replace(year=NOW.year + 1)
    )
    charge(again, 1)

    with pytest.raises(LedgerCorrupt, match=r"entry 2 .* is another one"):
        witness_federation(other, own)


def test_store_without_a_ledger_is_refused_also_once_there_was_one(store, federation):
    own = MemoryStore()
    witness_federation(store, own)

    for knows in (own, MemoryStore()):
        with pytest.raises(LedgerCorrupt, match="no ledger of the federation"):
            witness_federation(MemoryStore(), knows)


def test_entry_that_another_key_signed_is_refused(store, federation):
    own = MemoryStore()
    entry = charge(federation, 1)
    store.discard(entry_key(2))
    store.put_once(entry_key(2), to_bytes(sign(entry, generate_key())))

    with pytest.raises(LedgerCorrupt, match=r"entry 2 .* is not signed by its key"):
        witness_federation(store, own)


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_sha256", "0" * 64), ("seq", 3), ("dataset", "data-a"), ("unit", "row")],
)
def test_entry_that_does_not_continue_the_ledger_is_refused(store, federation, field, value):
    charge(federation, 1)
    entry = from_bytes(LedgerEntry, store.get(entry_key(2)), what="entry")
    changed = sign(entry.model_copy(update={field: value}), federation.key)
    store.discard(entry_key(2))
    store.put_once(entry_key(2), to_bytes(changed))

    with pytest.raises(LedgerCorrupt, match=r"entry 2 .* does not follow"):
        witness_federation(store, MemoryStore())


def test_damaged_or_endless_entry_is_refused(store, federation):
    for data in (b"{}", b" " * (2 << 20)):
        store.discard(entry_key(2))
        store.put_once(entry_key(2), data)

        with pytest.raises(LedgerCorrupt, match="entry 2 of the federation's ledger"):
            witness_federation(store, MemoryStore())
