"""Copies of a ledger in the store are read up to the first that is none, however many there are."""

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.rounds.statement_ledgers import _copy_until
from fl_core.updates.signing import generate_key
from tests.signed_copies import copy_at

PREFIX = keys.witness("north", "rows", "row")


class CountingStore(MemoryStore):
    """A store that counts the objects that are read."""

    n_reads = 0

    def get(self, key, *, max_bytes=None):
        self.n_reads += 1
        return super().get(key, max_bytes=max_bytes)


def test_nothing_is_read_behind_a_copy_that_is_none():
    store, key = CountingStore(), generate_key()
    for seq in (1, 2):
        at = keys.witnessed_entry(PREFIX, seq)
        store.put_once(at, copy_at(at, key))
    for seq in range(3, 2003):
        store.put_once(keys.witnessed_entry(PREFIX, seq), b"garbage")

    copy = _copy_until(store, PREFIX, 10**9)

    assert copy.list("") == [keys.ledger_entry(1), keys.ledger_entry(2)]
    # The two, and the first that is none.
    assert store.n_reads == 3


def test_copies_behind_the_stated_one_are_not_read():
    store, key = CountingStore(), generate_key()
    for seq in (1, 2, 3):
        at = keys.witnessed_entry(PREFIX, seq)
        store.put_once(at, copy_at(at, key))

    copy = _copy_until(store, PREFIX, 2)

    assert copy.get(keys.ledger_entry(2)) == store.get(keys.witnessed_entry(PREFIX, 2))
    assert copy.list("") == [keys.ledger_entry(1), keys.ledger_entry(2)]
