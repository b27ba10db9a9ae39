"""What a thief of a site's key signs: no entry of his ends the ledger, or stalls a reading."""

from dataclasses import replace

import pytest
from worlds import NOW

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.held_entries import REACH
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry, LostNumbers, LostRange
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.privacy.recovery import LostLedger, Owed, append_missing, find_recovery
from fl_core.privacy.witness import WitnessedStore, ask_witnesses, publish
from fl_core.updates.records import LAST_SEQUENCE
from fl_core.updates.signing import generate_key, public_hex, sign

KEY = generate_key()
EVENT = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
PREFIX = keys.witness("north", "d", "row")


def witnessed():
    store = MemoryStore()
    ledger = Ledger.create(store, dataset="d", unit="row", key=KEY, now=NOW)
    witnesses = [
        WitnessedStore("coordinator", MemoryStore(), is_own=False),
        WitnessedStore("disk", MemoryStore(), is_own=True),
    ]
    publish(ledger, witnesses, owner="north")
    return ledger, store, witnesses


def forged(seq, **fields):
    told = {"kind": "reserve", "campaign_digest": "0" * 64, "round": 1, "event": EVENT}
    told |= {"plan_sha256": "1" * 64, "previous_sha256": "2" * 64} | fields
    return sign(LedgerEntry(seq=seq, dataset="d", unit="row", time=NOW, **told), KEY)


def plant(witness, entry):
    witness.store.put_once(keys.witnessed_entry(PREFIX, entry.seq), to_bytes(entry))


def lost(store, key=KEY, lost_key=None):
    return LostLedger("north", "d", "row", key, store, lost_key)


@pytest.mark.parametrize("seq", [LAST_SEQUENCE, REACH + 2, 1 + REACH + 1])
@pytest.mark.parametrize("is_key_lost", [False, True])
def test_entry_out_of_reach_is_charged_and_the_ledger_goes_on_below_it(seq, is_key_lost):
    _, store, witnesses = witnessed()
    plant(witnesses[0], forged(seq))
    key = generate_key() if is_key_lost else KEY
    left = lost(store, key, public_hex(KEY) if is_key_lost else None)

    found = find_recovery(left, witnesses, Owed(), now=NOW)
    append_missing(left, found)

    # Genesis, the rotation where there is one, and the recovery.
    assert sorted(found.entries) == ([1, 2, 3] if is_key_lost else [1, 2])
    assert found.recovered.set_aside == (document_sha256(forged(seq)),)
    assert read_ledger(store, public_hex(key)).events() == [EVENT]
    after = Ledger(store, dataset="d", unit="row", key=key)
    assert publish(after, witnesses, owner="north") == ("coordinator", "disk")


def test_entry_as_far_as_a_ledger_may_have_gone_is_taken_back():
    _, store, witnesses = witnessed()
    plant(witnesses[0], forged(1 + REACH))

    found = find_recovery(lost(store), witnesses, Owed(), now=NOW)

    assert found.recovered.seq == REACH + 2


def test_ledger_is_not_led_to_its_last_number_by_many_steps(monkeypatch):
    monkeypatch.setattr("fl_core.privacy.held_entries.HIGHEST_ELSEWHERE", 3 * REACH)
    _, store, witnesses = witnessed()
    for step in range(1, 6):
        plant(witnesses[0], forged(step * REACH))

    found = find_recovery(lost(store), witnesses, Owed(), now=NOW)

    assert found.recovered.seq == 3 * REACH + 1


def test_ledger_that_an_earlier_version_wrote_past_its_last_number_is_recovered():
    _, store, witnesses = witnessed()
    plant(witnesses[0], forged(LAST_SEQUENCE))
    store.put_once(keys.ledger_entry(LAST_SEQUENCE), to_bytes(forged(LAST_SEQUENCE)))
    store.put_once(f"{keys.LEDGER}1000000000.json", b"{}")

    found = find_recovery(lost(store), witnesses, Owed(), now=NOW)
    fresh = MemoryStore()
    append_missing(replace(lost(store), store=fresh), found)

    assert found.needs_fresh_store
    assert found.strange == (f"{keys.LEDGER}1000000000.json",)
    assert [entry.seq for entry in read_ledger(fresh, public_hex(KEY)).entries] == [1, 2]


def test_ledger_without_numbers_left_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr("fl_core.privacy.recovery.LAST_SEQUENCE", 1000)
    _, store, witnesses = witnessed()
    plant(witnesses[0], forged(3))

    with pytest.raises(LedgerCorrupt, match="no room to recover it"):
        find_recovery(lost(store), witnesses, Owed(), now=NOW)


def test_recovery_that_no_witness_would_take_is_refused_before_it_is_written(monkeypatch):
    monkeypatch.setattr("fl_core.privacy.recovery.MAX_ENTRY_BYTES", 2000)
    _, store, witnesses = witnessed()
    for step in range(10):
        plant(witnesses[0], forged(LAST_SEQUENCE - step, round=1 + step))

    with pytest.raises(LedgerCorrupt, match="charge 10 rounds and set 10 entries aside"):
        find_recovery(lost(store), witnesses, Owed(), now=NOW)


def test_entries_that_follow_each_other_in_a_circle_are_still_put_in_order():
    _, store, witnesses = witnessed()
    upper = forged(5)
    plant(witnesses[0], upper)
    plant(witnesses[0], forged(3, previous_sha256=document_sha256(upper)))

    found = find_recovery(lost(store), witnesses, Owed(), now=NOW)

    assert sorted(found.entries) == [1, 3, 5, 6]


# Counted one by one it would take days: the time limit of a test run is the alarm.
def test_recovery_that_names_all_numbers_as_lost_is_read_at_once():
    ledger, store, witnesses = witnessed()
    far = LAST_SEQUENCE - 1
    gaps = tuple(LostRange(first=1 + n, last=far - 1) for n in range(1, 200))
    fields = {"kind": "recovered", "lost": gaps, "charges": (), "set_aside": ()}
    bare = {"campaign_digest": None, "round": None, "plan_sha256": None, "event": None}
    entry = forged(far, previous_sha256=ledger.head()[1], **fields, **bare)
    store.put_once(keys.ledger_entry(far), to_bytes(entry))

    read = read_ledger(store, public_hex(KEY))
    said = ask_witnesses(ledger, read.entries, witnesses, owner="north")

    assert [each.seq for each in read.entries] == [1, far]
    assert {each.complaint for each in said} == {""}


@pytest.mark.parametrize(
    ("ranges", "first", "last", "is_lost"),
    [
        ((), 3, 3, False),
        ((), 3, 2, True),
        (((3, 5),), 3, 5, True),
        (((3, 5),), 2, 5, False),
        (((3, 5),), 3, 6, False),
        (((6, 9), (3, 5)), 3, 9, True),
        (((7, 9), (3, 5)), 3, 9, False),
        (((3, 9), (4, 5)), 6, 9, True),
    ],
    ids=str,
)
def test_lost_numbers_are_those_of_all_recoveries_together(ranges, first, last, is_lost):
    fields = {"kind": "recovered", "charges": (), "set_aside": ()}
    bare = {"campaign_digest": None, "round": None, "plan_sha256": None, "event": None}
    entries = [forged(20, lost=(LostRange(first=a, last=b),), **fields, **bare) for a, b in ranges]

    assert LostNumbers(entries).has_all(first, last) == is_lost
