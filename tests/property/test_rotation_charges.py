"""Rounds, snapshots, restores, changes of keys and lost keys in any order: nothing is forgotten.

A snapshot is of the whole folder, its key included. After a restore the operator puts the newest
key back where it was kept apart, and else goes on with a new one in place of a lost one, as
`fedloom site rotate --lost-key` does. One witness keeps everything, so the charge must be the
truth: as many rounds are charged as were ever trained, under whichever key.
"""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import LedgerCorrupt, WitnessUnavailable
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.recovery import LostLedger, append_missing, find_recovery
from fl_core.rounds.site_recovery import close_exchanges, owed_by_site
from fl_core.rounds.site_rotation import hand_over
from fl_core.updates.outbox import Outbox
from fl_core.updates.signing import generate_key, public_hex
from tests.property.test_recovery_charges import Life
from tests.snapshots import copy_of, take_part
from tests.worlds import NOW

ACTIONS = st.lists(
    st.one_of(
        st.just(("round", 0)),
        st.just(("round", 0)),
        st.just(("same round", 0)),
        st.just(("change keys", 0)),
        st.just(("snapshot", 0)),
        st.tuples(st.sampled_from(["restore", "restore, key kept apart"]), st.integers(0, 3)),
        st.tuples(st.just("lose at the other"), st.integers(0, 20)),
    ),
    min_size=3,
    max_size=12,
)


class KeyedLife(Life):
    """One site whose keys change on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = self.key
        self.snapshots = [(copy_of(self.ledger), copy_of(self.outbox), self.key)]

    def do(self, action: str, which: int) -> None:
        match action:
            case "change keys":
                self.change_keys()
            case "snapshot":
                self.snapshots.append((copy_of(self.ledger), copy_of(self.outbox), self.key))
            case "restore" | "restore, key kept apart":
                ledger, outbox, key = self.snapshots[which % len(self.snapshots)]
                self.ledger, self.outbox = copy_of(ledger), copy_of(outbox)
                self.key = key if action == "restore" else self.newest
            case _:
                super().do(action, which)

    def change_keys(self) -> None:
        key = generate_key()
        try:
            hand_over(self.site(), key)
        except (LedgerCorrupt, WitnessUnavailable):
            self.recover()
            hand_over(self.site(), key)
        self.key = self.newest = key

    def recover(self) -> None:
        try:
            super().recover()
        except LedgerCorrupt:
            # The folder's key was given up, and nobody has the one after it.
            self.recover_with_a_new_key()

    def recover_with_a_new_key(self) -> None:
        lost_key, self.key = public_hex(self.key), generate_key()
        self.newest = self.key
        dataset, unit = self.policy.dataset, self.policy.unit
        lost = LostLedger("a", dataset, unit, self.key, self.ledger, lost_key=lost_key)
        outbox = Outbox(self.outbox)
        owed = owed_by_site(self.world.store, outbox, site="a", dataset=dataset, unit=unit)
        now = NOW + timedelta(seconds=next(self.ticks))
        found = find_recovery(lost, self.witnesses(), owed, now=now)
        close_exchanges(outbox, found, dataset=dataset)
        target = replace(lost, store=copy_of(self.ledger))
        if found.replaced:
            target = replace(lost, store=type(self.ledger)())
        append_missing(target, found)
        self.ledger = target.store

    def take_part(self) -> None:
        try:
            take_part(self.world, self.site(), self.number)
        except (LedgerCorrupt, WitnessUnavailable):
            self.recover()
            take_part(self.world, self.site(), self.number)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(actions=ACTIONS)
def test_rule_14_whatever_keys_change_or_are_lost_the_charge_is_the_truth(actions):
    life = KeyedLife()

    for action, which in actions:
        life.do(action, which)
    life.number += 1
    life.take_part()

    chain = ChainReader(public_hex(life.key)).read(life.ledger)
    assert chain.findings == []
    assert len(chain.events()) == life.world.works["a"].trainings
