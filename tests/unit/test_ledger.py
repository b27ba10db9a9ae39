"""The ledger: what it accepts, what it refuses, and every way a copy can be tampered with."""

import json

import pytest
from worlds import NOW, campaign_of, policy_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import BudgetExhausted, LedgerConflict, LedgerCorrupt, PolicyRefused
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import MAX_ATTEMPTS, Ledger
from fl_core.privacy.ledger_entries import (
    ChainReader,
    LedgerEntry,
    read_ledger,
)
from fl_core.privacy.policy import verdict
from fl_core.updates.signing import generate_key, public_hex, sign

KEY = generate_key()
DIGEST = campaign_of().digest
PLAN, OTHER_PLAN = "a" * 64, "c" * 64
EVENT = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
OTHER_EVENT = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=4)


def open_ledger(store, *, dataset="d", unit="row", key=KEY):
    return Ledger(store, dataset=dataset, unit=unit, key=key, clock=lambda: NOW)


def new_ledger(store=None):
    store = MemoryStore() if store is None else store
    Ledger.create(store, dataset="d", unit="row", key=KEY, now=NOW)
    return open_ledger(store), store


def reserve(ledger, number=1, *, plan=PLAN, event=EVENT, require=lambda _events: None):
    return ledger.reserve(
        campaign_digest=DIGEST,
        round_number=number,
        plan_sha256=plan,
        event=event,
        require=require,
    )


def filled():
    ledger, store = new_ledger()
    ledger.commit(reserve(ledger, 1))
    reserve(ledger, 2)
    return ledger, store


def test_new_ledger_holds_its_genesis_only():
    ledger, store = new_ledger()

    (genesis,) = ledger.entries()

    assert (genesis.seq, genesis.kind, genesis.dataset) == (1, "genesis", "d")
    assert ledger.events() == []
    assert ChainReader(public_hex(KEY)).read(store).findings == []


def test_second_genesis_is_refused():
    _, store = new_ledger()

    with pytest.raises(PolicyRefused, match="second genesis"):
        new_ledger(store)


def test_without_a_ledger_nothing_is_charged():
    with pytest.raises(LedgerCorrupt, match="no genesis"):
        reserve(open_ledger(MemoryStore()))


def test_reserve_counts_before_and_after_its_commit():
    ledger, _ = new_ledger()

    charged = reserve(ledger)
    before = ledger.events()
    ledger.commit(charged)

    assert before == ledger.events() == [EVENT]
    assert [entry.kind for entry in ledger.entries()] == ["genesis", "reserve", "commit"]


def test_charging_and_committing_again_change_nothing():
    ledger, _ = new_ledger()

    first = reserve(ledger)
    commit = ledger.commit(first)

    assert reserve(ledger, require=_never) == first
    assert ledger.commit(first) == commit
    assert ledger.head()[0] == 3


def _never(_events):
    raise AssertionError("a charge that stands is not decided again")


def test_decision_is_about_the_events_before():
    ledger, _ = new_ledger()
    seen = []

    for number in (1, 2, 3):
        reserve(ledger, number, require=lambda events: seen.append(len(events)))

    assert seen == [0, 1, 2]


def test_refused_charge_leaves_no_entry():
    ledger, _ = new_ledger()
    policy = policy_of(campaign_of(), "a", epsilon=1.0)

    with pytest.raises(BudgetExhausted):
        reserve(ledger, require=lambda events: verdict(policy, events, EVENT))

    assert ledger.head()[0] == 1


def test_ledger_of_another_dataset_or_unit_is_refused():
    _, store = new_ledger()

    for other in ({"dataset": "e"}, {"unit": "patient"}):
        with pytest.raises(LedgerCorrupt, match="one dataset and unit"):
            open_ledger(store, **other).entries()


def test_reserve_of_another_ledger_cannot_be_committed():
    ledger, _ = new_ledger()
    elsewhere, _ = new_ledger()
    reserve(ledger)

    with pytest.raises(LedgerCorrupt, match="rolled back"):
        ledger.commit(reserve(elsewhere, 2))


def test_writer_that_loses_decides_again_on_what_was_written():
    ledger, store = new_ledger()
    rival = open_ledger(store)
    seen = []

    def require(events):
        seen.append(len(events))
        if len(seen) == 1:
            reserve(rival, 7)

    entry = reserve(ledger, 1, require=require)

    assert seen == [0, 1]
    assert entry.seq == 3


def test_writer_that_always_loses_gives_up_and_may_try_again():
    class BusyStore(MemoryStore):
        def put_once(self, key, data):
            return False if key == keys.ledger_entry(2) else super().put_once(key, data)

    ledger, _ = new_ledger(BusyStore())

    with pytest.raises(LedgerConflict, match=str(MAX_ATTEMPTS)) as caught:
        reserve(ledger)

    assert caught.value.retryable


def _copy(store, change):
    """Return a store with ``change`` applied to the dictionary of raw entries."""
    raw = {key: store.get(key) for key in store.list("")}
    change(raw)
    other = MemoryStore()
    for key, data in raw.items():
        other.put_once(key, data)
    return other


def _edit(seq, **fields):
    def change(raw):
        key = keys.ledger_entry(seq)
        raw[key] = json.dumps(json.loads(raw[key]) | fields).encode()

    return change


def _resign(at, key=KEY, **fields):
    def change(raw):
        name = keys.ledger_entry(at)
        entry = from_bytes(LedgerEntry, raw[name], what=name)
        raw[name] = to_bytes(sign(entry.model_copy(update=fields), key))

    return change


def _drop(seq):
    return lambda raw: raw.pop(keys.ledger_entry(seq))


def _swap(raw):
    one, two = keys.ledger_entry(2), keys.ledger_entry(4)
    raw[one], raw[two] = raw[two], raw[one]


def _append(**fields):
    def change(raw):
        name = keys.ledger_entry(4)
        entry = from_bytes(LedgerEntry, raw[name], what=name)
        new = entry.model_copy(update={"seq": 5} | fields)
        raw[keys.ledger_entry(5)] = to_bytes(sign(new, KEY))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_edit(2, round=3), "entry 2 is not signed"),
        (_edit(2, event=json.loads(OTHER_EVENT.model_dump_json())), "entry 2 is not signed"),
        (_edit(2, note="x"), "entry 2 cannot be read"),
        (_edit(2, kind="commit"), "entry 2 cannot be read"),
        (_resign(2, key=generate_key()), "entry 2 is not signed"),
        (_resign(2, round=3), "entry 3 does not follow"),
        (_resign(3, time=NOW.replace(year=2027)), "entry 4 does not follow"),
        (_resign(4, seq=9), "entry 4 says it is number 9"),
        (_resign(4, dataset="e"), "entry 4 is about another dataset"),
        (_drop(2), "entry 2 is missing"),
        (_drop(1), "entry 1 is missing"),
        (_swap, "entry 2 says it is number 4"),
        (_append(), "charges a round for the second time"),
        (_append(kind="commit", event=None, reserve_seq=3, terms=None), "commits no open reserve"),
    ],
)
def test_tampering_is_found_and_named(change, said):
    _, store = filled()
    tampered = _copy(store, change)

    findings = ChainReader(public_hex(KEY)).read(tampered).findings

    assert any(said in finding for finding in findings), findings
    with pytest.raises(LedgerCorrupt, match="ledger entry"):
        read_ledger(tampered, public_hex(KEY))


def test_whole_ledger_verifies_with_the_public_key_only():
    ledger, store = filled()

    chain = read_ledger(store, public_hex(KEY))

    assert chain.entries == ledger.entries()
    assert ChainReader(public_hex(KEY)).read(store).findings == []
    assert ChainReader(public_hex(generate_key())).read(store).findings
