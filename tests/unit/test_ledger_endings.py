"""Voids and recoveries on a ledger: what they mean, what is refused, that old bytes still hold."""

import itertools
import json

import pytest
from worlds import NOW

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt, PolicyRefused, WitnessUnavailable
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import NO_ENTRY, LedgerEntry, LostCharge, LostRange
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.recovery import MARGIN, LostLedger, Owed, find_recovery
from fl_core.privacy.witness import WitnessedStore, publish
from fl_core.updates.signing import generate_key, public_hex, sign

KEY = generate_key()
DIGEST, PLAN = "c" * 64, "a" * 64
EVENT = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)


class CountingStore(MemoryStore):
    """Counts reads."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def get(self, key, *, max_bytes=None):
        self.reads += 1
        return super().get(key, max_bytes=max_bytes)


def new_ledger(store=None):
    store = MemoryStore() if store is None else store
    return Ledger.create(store, dataset="d", unit="row", key=KEY, now=NOW)


def reserve(ledger, number=1):
    return ledger.reserve(
        campaign_digest=DIGEST,
        round_number=number,
        plan_sha256=PLAN,
        event=EVENT,
        require=lambda _: None,
    )


def lost_charge(number):
    return LostCharge(campaign_digest=DIGEST, round=number, plan_sha256=PLAN, event=EVENT)


def lost(store):
    return LostLedger("north", "d", "row", KEY, store)


def findings(store):
    return ChainReader(public_hex(KEY)).read(store).findings


def test_void_takes_the_event_back_and_the_round_stays_closed():
    ledger = new_ledger()
    first, second = reserve(ledger, 1), reserve(ledger, 2)

    void = ledger.void(first)

    assert ledger.events() == [EVENT]
    assert ledger.void(first) == void
    assert ledger.chain().open_reserves() == [second]
    with pytest.raises(PolicyRefused, match="voided"):
        reserve(ledger, 1)


def test_how_a_reserve_ended_first_is_how_it_ended():
    ledger = new_ledger()
    committed, voided = reserve(ledger, 1), reserve(ledger, 2)
    ledger.commit(committed)
    ledger.void(voided)

    assert ledger.void(committed).kind == "commit"
    with pytest.raises(LedgerCorrupt, match="must not leave"):
        ledger.commit(voided)
    assert ledger.events() == [EVENT]


def test_void_without_an_open_reserve_does_not_verify():
    ledger, store = new_ledger(), MemoryStore()
    entries = [*ledger.entries()]
    forged = LedgerEntry(
        seq=2,
        dataset="d",
        unit="row",
        kind="void",
        campaign_digest=DIGEST,
        round=1,
        plan_sha256=PLAN,
        reserve_seq=1,
        time=NOW,
        previous_sha256=ledger.head()[1],
    )
    for entry in (*entries, sign(forged, KEY)):
        store.put_once(keys.ledger_entry(entry.seq), to_bytes(entry))

    assert findings(store) == ["ledger entry 2 voids no open reserve"]


def test_charge_reads_what_is_new_and_nothing_else():
    store = CountingStore()
    ledger = new_ledger(store)
    reads = []
    for number in range(1, 60):
        store.reads = 0
        ledger.commit(reserve(ledger, number))
        reads.append(store.reads)

    assert len(set(reads[2:])) == 1


def test_followed_ledger_sees_what_another_process_wrote():
    store = MemoryStore()
    ledger = new_ledger(store)
    other = Ledger(store, dataset="d", unit="row", key=KEY)
    ledger.events()

    reserve(other, 1)
    seen = ledger.events()
    ledger.commit(reserve(ledger, 1))

    assert seen == [EVENT]
    assert other.chain() == ledger.chain()


@pytest.mark.parametrize("damage", ["last entry changed", "ledger replaced by a longer one"])
def test_reader_that_followed_a_ledger_finds_it_exchanged(damage):
    store = MemoryStore()
    ledger = new_ledger(store)
    reserve(ledger, 1)
    reader = ChainReader(public_hex(KEY))
    reader.read(store)
    other = MemoryStore()
    twin = new_ledger(other)
    reserve(twin, 9)
    reserve(twin, 10)
    if damage == "last entry changed":
        other = MemoryStore()
        other.put_once(keys.ledger_entry(1), store.get(keys.ledger_entry(1)))
        changed = store.get(keys.ledger_entry(2)).replace(b'"round":1', b'"round":2')
        other.put_once(keys.ledger_entry(2), changed)

    chain = reader.read(other)

    assert chain == ChainReader(public_hex(KEY)).read(other)


def test_entries_of_before_have_the_bytes_that_were_signed_then():
    # An entry as fedloom 0.1.0 wrote it: none of the later fields may appear in it.
    entry = LedgerEntry(
        seq=1, dataset="d", unit="row", kind="genesis", time=NOW, previous_sha256=NO_ENTRY
    )

    plain = json.loads(to_bytes(entry))

    assert sorted(plain) == [
        *("dataset", "kind", "previous_sha256", "seq", "signature", "time", "unit"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "recovered"},
        {"kind": "recovered", "lost": (), "charges": ()},
        {"kind": "genesis", "lost": ()},
        {"kind": "void"},
        {"kind": "recovered", "lost": (), "charges": (), "set_aside": (), "event": EVENT},
    ],
    ids=str,
)
def test_fields_that_do_not_fit_a_kind_are_refused(changes):
    fields = {"seq": 2, "dataset": "d", "unit": "row", "time": NOW, "previous_sha256": NO_ENTRY}

    with pytest.raises(ValueError, match="do not fit"):
        LedgerEntry(**fields | changes)


def test_lost_range_has_an_order():
    with pytest.raises(ValueError, match="before its start"):
        LostRange(first=3, last=2)


def witnessed_ledger(rounds):
    """Return a ledger of so many committed rounds, its store, and a witness that holds all."""
    store, witness = MemoryStore(), WitnessedStore("disk", MemoryStore(), is_own=True)
    ledger = new_ledger(store)
    for number in range(1, rounds + 1):
        ledger.commit(reserve(ledger, number))
    publish(ledger, [witness], owner="north")
    return ledger, store, witness


def kept(store, *seqs):
    copy = MemoryStore()
    for seq in seqs:
        copy.put_once(keys.ledger_entry(seq), store.get(keys.ledger_entry(seq)))
    return copy


def test_nothing_is_recovered_where_nothing_is_lost():
    _, store, witness = witnessed_ledger(2)

    found = find_recovery(lost(store), [witness], Owed(plans=(lost_charge(9),)), now=NOW)

    assert not found.is_needed


@pytest.mark.parametrize("local", list(itertools.chain.from_iterable(
    itertools.combinations(range(1, 6), n) for n in range(5)
)), ids=str)  # fmt: skip
def test_any_part_of_a_ledger_is_made_whole_from_a_witness(local):
    _, store, witness = witnessed_ledger(2)

    found = find_recovery(lost(kept(store, *local)), [witness], Owed(), now=NOW)

    assert {seq: store.get(keys.ledger_entry(seq)) for seq in range(1, 6)} == found.entries
    assert found.imported == tuple(seq for seq in range(1, 6) if seq not in local)
    assert found.recovered is None


def test_entry_that_was_changed_on_the_disk_is_replaced():
    _, store, witness = witnessed_ledger(2)
    damaged = kept(store, 1, 2, 3, 5)
    damaged.put_once(keys.ledger_entry(4), b"{}")

    found = find_recovery(lost(damaged), [witness], Owed(), now=NOW)

    assert found.entries[4] == store.get(keys.ledger_entry(4))
    assert (found.imported, found.replaced) == ((), (4,))


def test_gap_charges_only_plans_that_are_not_on_the_ledger():
    _, store, _ = witnessed_ledger(3)
    owed = Owed(plans=tuple(lost_charge(number) for number in (1, 2, 3, 4)))

    # Entries 4 and 5, round 2, are gone everywhere.
    found = find_recovery(lost(kept(store, 1, 2, 3, 6, 7)), [], owed, now=NOW)

    entry = found.recovered
    assert entry.seq == 8
    assert [(gap.first, gap.last) for gap in entry.lost] == [(4, 5)]
    assert [charge.round for charge in entry.charges] == [2, 4]
    made = MemoryStore()
    for seq, data in found.entries.items():
        made.put_once(keys.ledger_entry(seq), data)
    assert findings(made) == []
    assert len(Ledger(made, dataset="d", unit="row", key=KEY).events()) == 4


def test_gap_without_a_recovery_that_names_it_does_not_verify():
    _, store, _ = witnessed_ledger(3)

    assert "ledger entry 4 is missing" in findings(kept(store, 1, 2, 3, 6, 7))[0]


def test_recovered_ledger_goes_on_and_can_be_recovered_again():
    _, store, _ = witnessed_ledger(2)
    damaged = kept(store, 1, 2, 3, 5)
    first = find_recovery(lost(damaged), [], Owed((lost_charge(2),)), now=NOW)
    for seq, data in first.entries.items():
        damaged.put_once(keys.ledger_entry(seq), data)
    ledger = Ledger(damaged, dataset="d", unit="row", key=KEY)

    ledger.commit(reserve(ledger, 3))
    again = find_recovery(lost(damaged), [], Owed((lost_charge(2), lost_charge(3))), now=NOW)

    assert [entry.kind for entry in ledger.entries()][-3:] == ["recovered", "reserve", "commit"]
    assert not again.is_needed
    with pytest.raises(PolicyRefused, match="charged by a recovery"):
        reserve(ledger, 2)


def test_blind_recovery_leaves_room_for_what_witnesses_may_still_hold():
    _, store, witness = witnessed_ledger(1)

    class Away(MemoryStore):
        def list(self, prefix):
            from fl_core.errors import StoreUnavailable

            raise StoreUnavailable(f"no route to {prefix}")

    away = WitnessedStore("far", Away(), is_own=True)
    with pytest.raises(WitnessUnavailable, match="far"):
        find_recovery(lost(store), [away, witness], Owed(), now=NOW)
    found = find_recovery(
        lost(store), [away, witness], Owed((lost_charge(2),)), now=NOW, assume_lost=True
    )

    assert found.recovered.seq == 3 + MARGIN + 1
    assert [charge.round for charge in found.recovered.charges] == [2]


def test_ledger_of_another_key_cannot_be_recovered():
    _, store, witness = witnessed_ledger(1)
    stranger = LostLedger("north", "d", "row", generate_key(), store)

    with pytest.raises(LedgerCorrupt, match="nobody holds a genesis"):
        find_recovery(stranger, [witness], Owed(), now=NOW)
