"""Rounds, snapshots, restores and losses in any order: the ledger never forgets a training.

A restore sets ledger and outbox back to an earlier copy, also several times, also to a copy from
before an earlier recovery. One witness may lose anything. The other one may lose entries inside,
never its last: with the end of all copies gone, nobody could tell. A site that finds itself set
back is recovered as its operator would, and goes on. Whatever happened, it has charged at least as
many rounds as it has trained.
"""

import itertools
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.recovery import LostLedger, append_missing, find_recovery
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.site_recovery import close_exchanges, owed_by_site
from fl_core.updates.outbox import Outbox
from fl_core.updates.signing import public_hex
from tests.snapshots import copy_of, take_part
from tests.worlds import NOW, campaign_of, open_site, world_of

STEPS = {"local_steps": 1, "batch_size": 16, "learning_rate": 0.1}
ACTIONS = st.lists(
    st.one_of(
        st.just(("round", 0)),
        st.just(("round", 0)),
        st.just(("same round", 0)),
        st.just(("snapshot", 0)),
        st.tuples(st.just("restore"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["lose inside", "lose at the other"]), st.integers(0, 20)),
    ),
    min_size=3,
    max_size=12,
)


class Life:
    """One site through all of it."""

    def __init__(self) -> None:
        # RDP at one order decides, since it costs no time; the limit is never reached.
        self.world = world_of(
            campaign_of(sites=("a",), max_rounds=15, training=STEPS),
            series=None,
            rdp_order=3.0,
            epsilon=1000.0,
        )
        old = self.world.sites["a"]
        self.ledger, self.outbox = self.world.ledgers["a"], self.world.outboxes["a"]
        self.stores = [MemoryStore(), MemoryStore()]
        self.key, self.policy = old.key, old.policy
        self.snapshots = [(copy_of(self.ledger), copy_of(self.outbox))]
        self.ticks = itertools.count()
        self.number = 1

    def witnesses(self) -> tuple[WitnessedStore, ...]:
        return tuple(
            WitnessedStore(f"w{n}", store, is_own=True) for n, store in enumerate(self.stores)
        )

    def site(self):
        # Every entry has a time of its own, as on a real machine: two branches always differ.
        ledger = Ledger(
            self.ledger,
            dataset=self.policy.dataset,
            unit=self.policy.unit,
            key=self.key,
            clock=lambda: NOW + timedelta(seconds=next(self.ticks)),
        )
        opened = open_site(
            *("a", self.key, self.policy, self.ledger, self.outbox), witnesses=self.witnesses()
        )
        return replace(opened, ledger=ledger)

    def do(self, action: str, which: int) -> None:
        match action:
            case "round" | "same round":
                self.number += action == "round"
                self.take_part()
            case "snapshot":
                self.snapshots.append((copy_of(self.ledger), copy_of(self.outbox)))
            case "restore":
                ledger, outbox = self.snapshots[which % len(self.snapshots)]
                self.ledger, self.outbox = copy_of(ledger), copy_of(outbox)
            case "lose inside":
                self.stores[0] = self.without(self.stores[0], which, keeps_last=True)
            case "lose at the other":
                self.stores[1] = self.without(self.stores[1], which, keeps_last=False)

    def without(self, store, which, *, keeps_last):
        held = store.list("witness/")
        may_go = held[1:-1] if keeps_last else held
        lost = may_go[which % len(may_go)] if may_go else ""
        kept = MemoryStore()
        for key in held:
            if key != lost:
                kept.put_once(key, store.get(key))
        return kept

    def take_part(self) -> None:
        try:
            take_part(self.world, self.site(), self.number)
        except LedgerCorrupt:
            self.recover()
            take_part(self.world, self.site(), self.number)

    def recover(self) -> None:
        dataset, unit = self.policy.dataset, self.policy.unit
        lost = LostLedger("a", dataset, unit, self.key, self.ledger)
        outbox = Outbox(self.outbox)
        owed = owed_by_site(self.world.store, outbox, site="a", dataset=dataset, unit=unit)
        now = NOW + timedelta(seconds=next(self.ticks))
        found = find_recovery(lost, self.witnesses(), owed, now=now)
        close_exchanges(outbox, found, dataset=dataset)
        if found.replaced:
            self.ledger = MemoryStore()
        append_missing(replace(lost, store=self.ledger), found)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(actions=ACTIONS)
def test_rule_14_as_many_rounds_are_charged_as_were_ever_trained(actions):
    life = Life()

    for action, which in actions:
        life.do(action, which)
    life.number += 1
    life.take_part()

    events = life.site().ledger.events()
    assert len(events) >= life.world.works["a"].trainings
    assert ChainReader(public_hex(life.key)).read(life.ledger).findings == []
    prefix = keys.witness("a", life.policy.dataset, life.policy.unit)
    assert life.stores[0].list(prefix)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(actions=ACTIONS.map(lambda found: [a for a in found if not a[0].startswith("lose")]))
def test_rule_14_with_witnesses_that_keep_everything_the_charge_is_the_truth(actions):
    life = Life()

    for action, which in actions:
        life.do(action, which)
    life.number += 1
    life.take_part()

    assert len(life.site().ledger.events()) == life.world.works["a"].trainings
