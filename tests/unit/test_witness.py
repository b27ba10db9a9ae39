"""What a witness is told, what it can show, and what of it counts."""

import pytest
from worlds import NOW

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt, PolicyRefused, StoreUnavailable, WitnessUnavailable
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.witness import (
    MAX_PUSHED,
    MAX_USELESS,
    WitnessedStore,
    ask_witnesses,
    publish,
    require_enough_witnesses,
)
from fl_core.updates.signing import generate_key, sign

KEY = generate_key()
EVENT = dpsgd_event(noise_multiplier=1.0, sampling_rate=0.1, steps=1)
PREFIX = keys.witness("north", "d", "row")


class CountingStore(MemoryStore):
    """Counts what a round asks of a witness."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def get(self, key, *, max_bytes=None):
        self.calls += 1
        return super().get(key, max_bytes=max_bytes)

    def put_once(self, key, data):
        self.calls += 1
        return super().put_once(key, data)

    def list(self, prefix):
        self.calls += 1
        return super().list(prefix)


class AwayStore(MemoryStore):
    def list(self, prefix):
        raise StoreUnavailable(f"no route to {prefix}")


def new_ledger(store=None):
    store = MemoryStore() if store is None else store
    return Ledger.create(store, dataset="d", unit="row", key=KEY, now=NOW)


def charge(ledger, number, digest="c" * 64):
    entry = ledger.reserve(
        campaign_digest=digest,
        round_number=number,
        plan_sha256="a" * 64,
        event=EVENT,
        require=lambda _: None,
    )
    return ledger.commit(entry)


def own(store, name="disk"):
    return WitnessedStore(name, store, is_own=True)


def foreign(store):
    return WitnessedStore("coordinator", store, is_own=False)


def test_witness_gets_every_entry_as_it_is_stored():
    store, witness = MemoryStore(), MemoryStore()
    ledger = new_ledger(store)
    charge(ledger, 1)

    acknowledged = publish(ledger, [own(witness)], owner="north")

    assert acknowledged == ("disk",)
    for seq in (1, 2, 3):
        copy = witness.get(keys.witnessed_entry(PREFIX, seq))
        assert copy == store.get(keys.ledger_entry(seq))


@pytest.mark.parametrize(
    ("witnesses", "named"),
    [
        ([foreign(MemoryStore())], "none"),
        ([own(AwayStore(), "far"), foreign(MemoryStore())], "far"),
    ],
    ids=["none of its own", "its own is away"],
)
def test_acknowledgement_by_the_coordinator_alone_is_not_enough(witnesses, named):
    with pytest.raises(WitnessUnavailable, match=named) as caught:
        publish(new_ledger(), witnesses, owner="north")

    assert caught.value.retryable


@pytest.mark.parametrize(("held", "calls"), [(None, 4), ({}, 3)], ids=["whole", "followed"])
def test_a_round_asks_a_witness_the_same_however_long_the_ledger_is(held, calls):
    ledger, witness = new_ledger(), CountingStore()
    counts = []
    for number in range(1, 121):
        charge(ledger, number)
        witness.calls = 0
        publish(ledger, [own(witness)], owner="north", held=held)
        counts.append(witness.calls)

    # Two new entries, and either a listing and the one before them, or a look at the place above.
    assert set(counts[1:]) == {calls}


def set_back_to_genesis():
    """Return a ledger that lost its one charge, and the witness that holds it."""
    store, older, witness = MemoryStore(), MemoryStore(), MemoryStore()
    ledger = new_ledger(store)
    older.put_once(keys.ledger_entry(1), store.get(keys.ledger_entry(1)))
    charge(ledger, 1)
    publish(ledger, [own(witness)], owner="north")
    return Ledger(older, dataset="d", unit="row", key=KEY), witness


def test_followed_witness_shows_a_rollback_by_the_next_entry():
    shorter, witness = set_back_to_genesis()

    with pytest.raises(LedgerCorrupt, match="holds entry 2"):
        publish(shorter, [own(witness)], owner="north", held={0: shorter.entries()[-1]})


def test_followed_ledger_that_has_lost_what_a_witness_held_is_looked_at_whole():
    shorter, witness = set_back_to_genesis()
    lost = from_bytes(LedgerEntry, witness.get(keys.witnessed_entry(PREFIX, 3)), what="a copy")
    charge(shorter, 2)

    with pytest.raises(LedgerCorrupt, match="two different entries 3"):
        publish(shorter, [own(witness)], owner="north", held={0: lost})


def test_witness_that_goes_away_is_looked_at_whole_when_it_is_back():
    class Leaving(MemoryStore):
        is_away = False

        def get(self, key, *, max_bytes=None):
            if self.is_away:
                raise StoreUnavailable(f"no route to {key}")
            return super().get(key, max_bytes=max_bytes)

    ledger, witness = new_ledger(), Leaving()
    held: dict[int, LedgerEntry] = {}
    publish(ledger, [own(witness)], owner="north", held=held)
    charge(ledger, 1)
    witness.is_away = True

    with pytest.raises(WitnessUnavailable):
        publish(ledger, [own(witness)], owner="north", held=held)

    assert held == {}


def test_new_witness_catches_up_in_bounded_steps_and_counts_once_it_has():
    ledger, old, new = new_ledger(), MemoryStore(), MemoryStore()
    for number in range(1, MAX_PUSHED // 2 + 3):
        charge(ledger, number)
    both = [own(old, "old"), own(new, "new")]
    with pytest.raises(WitnessUnavailable):
        publish(ledger, both, owner="north")
    held = len(new.list(PREFIX))

    again = publish(ledger, both, owner="north")

    assert held == MAX_PUSHED
    assert again == ("old", "new")
    assert len(new.list(PREFIX)) == len(ledger.entries())


def test_witness_that_holds_more_shows_a_ledger_that_was_cut_off():
    shorter, witness = set_back_to_genesis()

    with pytest.raises(LedgerCorrupt, match="ends at entry 1, and witness disk holds entry 2"):
        publish(shorter, [own(witness)], owner="north")


def test_witness_that_holds_another_entry_shows_a_fork():
    other, witness = set_back_to_genesis()
    charge(other, 2)

    with pytest.raises(LedgerCorrupt, match="two different entries 3"):
        publish(other, [own(witness)], owner="north")


def test_entry_that_another_process_wrote_meanwhile_is_no_rollback():
    store, witness = MemoryStore(), MemoryStore()
    ledger = new_ledger(store)
    other = Ledger(store, dataset="d", unit="row", key=KEY)

    class Between(MemoryStore):
        """Lets the other process charge and publish before the listing is answered."""

        def list(self, prefix):
            if not witness.list(prefix):
                charge(other, 1)
                publish(other, [own(witness)], owner="north")
            return witness.list(prefix)

        def get(self, key, *, max_bytes=None):
            return witness.get(key, max_bytes=max_bytes)

    assert publish(ledger, [own(Between())], owner="north") == ("disk",)


def with_garbage_above(first, last):
    store = CountingStore()
    for seq in range(first, last + 1):
        store.put_once(keys.witnessed_entry(PREFIX, seq), b"x")
    store.calls = 0
    return store


def test_garbage_above_the_end_costs_a_round_the_same_however_much_it_is():
    calls, asked = [], []
    for last in (500, 5000):
        ledger, full, disk = new_ledger(), with_garbage_above(2, last), MemoryStore()

        publish(ledger, [foreign(full), own(disk)], owner="north")
        calls.append(full.calls)
        full.calls = 0
        (verdict,) = ask_witnesses(ledger, ledger.entries(), [foreign(full)], owner="north")
        asked.append(full.calls)

        assert verdict.complaint == ""
    # A listing, both ends of what is above, the genesis: written, or looked for and compared.
    assert calls == [1 + 2 * MAX_USELESS + 1] * 2
    assert asked == [1 + 2 * MAX_USELESS + 1] * 2


@pytest.mark.parametrize("seq", [2, 5001])
def test_entry_at_either_end_of_garbage_shows_a_rollback_at_the_coordinator(seq):
    ledger, full = new_ledger(), with_garbage_above(3, 5000)
    longer = charge(ledger, 1).model_copy(update={"seq": seq})
    full.put_once(keys.witnessed_entry(PREFIX, seq), to_bytes(sign(longer, KEY)))

    with pytest.raises(LedgerCorrupt, match=f"holds entry {seq} signed by this site"):
        publish(new_ledger(), [foreign(full), own(MemoryStore())], owner="north")


def test_witness_of_the_sites_own_is_looked_at_whole_whatever_stands_there():
    ledger, disk = new_ledger(), with_garbage_above(2, 400)
    longer = charge(ledger, 1).model_copy(update={"seq": 200})
    disk.discard(keys.witnessed_entry(PREFIX, 200))
    disk.put_once(keys.witnessed_entry(PREFIX, 200), to_bytes(sign(longer, KEY)))

    with pytest.raises(LedgerCorrupt, match="holds entry 200 signed by this site"):
        publish(new_ledger(), [own(disk)], owner="north")


@pytest.mark.parametrize(
    "forge",
    [
        lambda entry: to_bytes(entry.model_copy(update={"signature": ""})),
        lambda entry: to_bytes(sign(entry, generate_key())),
        lambda entry: to_bytes(sign(entry.model_copy(update={"dataset": "other"}), KEY)),
        lambda entry: to_bytes(entry)[:20],
        lambda entry: to_bytes(entry) + b" " * (1 << 21),
    ],
    ids=["unsigned", "other key", "other ledger", "garbage", "too long"],
)
@pytest.mark.parametrize("seq", [1, 9])
def test_what_is_not_signed_for_this_ledger_counts_for_nothing(forge, seq):
    ledger, liar, honest = new_ledger(), MemoryStore(), MemoryStore()
    other = ledger.entries()[0].model_copy(update={"time": NOW.replace(year=2030), "seq": seq})
    liar.put_once(keys.witnessed_entry(PREFIX, seq), forge(other))

    acknowledged = publish(ledger, [foreign(liar), own(honest)], owner="north")

    assert "disk" in acknowledged
    # Squatting on the place of a real entry only makes the liar useless; above it, nothing at all.
    assert ("coordinator" in acknowledged) == (seq == 9)


@pytest.mark.parametrize(
    ("is_own", "enough"),
    [
        ([], False),
        ([True], False),
        ([False, False], False),
        ([False, True], True),
        ([True, True], True),
    ],
    ids=str,
)
def test_two_witnesses_and_one_of_the_sites_own_are_enough(is_own, enough):
    if enough:
        require_enough_witnesses(is_own)
    else:
        with pytest.raises(PolicyRefused) as caught:
            require_enough_witnesses(is_own)
        assert "[[witness]]" in caught.value.hint


def tampered(kind, store):
    """Return a copy of a ledger of five entries after one kind of damage."""
    copy = {seq: store.get(keys.ledger_entry(seq)) for seq in range(1, 6)}
    match kind:
        case "cut off":
            del copy[4], copy[5]
        case "lost inside":
            del copy[3]
        case "reordered":
            copy[4], copy[5] = copy[5], copy[4]
        case "changed":
            copy[4] = copy[4].replace(b'"round":2', b'"round":3')
    damaged = MemoryStore()
    for seq, data in copy.items():
        damaged.put_once(keys.ledger_entry(seq), data)
    return damaged


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("cut off", "entry 4"),
        ("lost inside", "entry 3"),
        ("reordered", "entry 4"),
        ("changed", "entry 4"),
    ],
)
def test_comparison_names_the_first_entry_that_does_not_agree(kind, first):
    store, witness = MemoryStore(), MemoryStore()
    ledger = new_ledger(store)
    charge(ledger, 1)
    charge(ledger, 2)
    publish(ledger, [own(witness)], owner="north")
    damaged = Ledger(tampered(kind, store), dataset="d", unit="row", key=KEY)

    chain = damaged.check()
    (verdict,) = ask_witnesses(damaged, chain.entries, [own(witness)], owner="north")

    found = [*chain.findings, verdict.complaint]
    assert first in next(each for each in found if each)


def test_comparison_says_which_witness_is_away():
    verdicts = ask_witnesses(new_ledger(), [], [own(AwayStore(), "far")], owner="north")

    assert [(v.name, v.is_away, v.complaint) for v in verdicts] == [("far", True, "")]
