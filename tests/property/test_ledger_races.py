"""Two writers that race and crash at any write lose no charge and overspend nothing.

A schedule says which writer moves next and where one dies: before a write, or after it but before
the writer learns of it. A dead writer starts again and repeats what it wanted, as a restarted site
does. What was refused stays refused; what was charged is charged once.
"""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import BudgetExhausted, PolicyRefused, StoreUnavailable, WitnessUnavailable
from fl_core.privacy.events import dpsgd_event, merged
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import ChainReader, read_ledger
from fl_core.privacy.witness import WitnessedStore, ask_witnesses, publish
from fl_core.updates.signing import generate_key, public_hex

KEY = generate_key()
EVENT = dpsgd_event(noise_multiplier=1.0, sampling_rate=0.1, steps=1)
LIMIT = 4


class Crash(BaseException):
    """The process dies here; no handler of the product may catch it."""


class CrashingStore(MemoryStore):
    """Dies at chosen writes of the wrapped store; a rival may move between read and write."""

    def __init__(self, inner: MemoryStore, moves: Iterator[str], rival) -> None:
        self._inner, self._moves, self._rival = inner, moves, rival

    def get(self, key, *, max_bytes=None):
        return self._inner.get(key, max_bytes=max_bytes)

    def list(self, prefix):
        return self._inner.list(prefix)

    def put_once(self, key, data):
        move = next(self._moves, "write")
        if move == "rival first":
            self._rival()
        if move == "die before":
            raise Crash
        written = self._inner.put_once(key, data)
        if move == "die after":
            raise Crash
        return written


def require(events):
    """Allow at most LIMIT steps, whoever asks."""
    if sum(count for _, count in merged([*events, EVENT])) > LIMIT:
        raise BudgetExhausted("no more steps")


def take_round(ledger, digest, number, told):
    entry = ledger.reserve(
        campaign_digest=digest,
        round_number=number,
        plan_sha256="a" * 64,
        event=EVENT,
        require=require,
    )
    told.append((digest, number, entry.seq))
    ledger.commit(entry)


class AwayOrNot(MemoryStore):
    """A witness that is away where the schedule says so."""

    def __init__(self, turns: Iterator[bool]) -> None:
        super().__init__()
        self._turns = turns

    def list(self, prefix):
        if next(self._turns, False):
            raise StoreUnavailable("no route")
        return super().list(prefix)


MOVES = st.lists(st.sampled_from(["write", "rival first", "die before", "die after"]), max_size=30)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(moves=MOVES)
def test_no_charge_is_lost_or_made_twice_and_none_passes_the_limit(moves):
    inner, told, refused = MemoryStore(), [], []
    Ledger.create(inner, dataset="d", unit="row", key=KEY, now=NOW)
    rival = Ledger(inner, dataset="d", unit="row", key=KEY, clock=lambda: NOW)
    rounds = iter(range(1, 100))

    def rival_moves():
        try:
            take_round(rival, "b" * 64, next(rounds), told)
        except BudgetExhausted:
            refused.append("rival")

    store = CrashingStore(inner, iter(moves), rival_moves)
    for number in (1, 2, 3):
        while True:
            ledger = Ledger(store, dataset="d", unit="row", key=KEY, clock=lambda: NOW)
            try:
                take_round(ledger, "c" * 64, number, told)
            except Crash:
                continue
            except BudgetExhausted:
                refused.append(number)
            break

    chain = rival.chain()
    charged = [(e.campaign_digest, e.round, e.seq) for e in chain.entries if e.kind == "reserve"]
    assert ChainReader(public_hex(KEY)).read(inner).findings == []
    assert set(told) <= set(charged)
    assert len({(digest, number) for digest, number, _ in charged}) == len(charged) <= LIMIT
    # A refusal means that the limit was really reached.
    assert not refused or len(charged) == LIMIT


@settings(max_examples=100, deadline=None, derandomize=True)
@given(moves=MOVES, away=st.lists(st.booleans(), max_size=40))
def test_rule_14_whatever_crashes_a_trained_charge_is_at_a_witness_and_nothing_forks(moves, away):
    inner, acknowledged, turns = MemoryStore(), [], iter(away)
    Ledger.create(inner, dataset="d", unit="row", key=KEY, now=NOW)
    witness_stores = [AwayOrNot(turns), AwayOrNot(turns)]
    witnesses = [WitnessedStore(f"w{n}", s, is_own=True) for n, s in enumerate(witness_stores)]
    rival = Ledger(inner, dataset="d", unit="row", key=KEY, clock=lambda: NOW)
    rounds = iter(range(1, 100))

    def charge(ledger, digest, number):
        entry = ledger.reserve(
            campaign_digest=digest,
            round_number=number,
            plan_sha256="a" * 64,
            event=EVENT,
            require=lambda _: None,
        )
        # Where a site would train: only after this returned.
        publish(ledger, witnesses, owner="site")
        acknowledged.append(entry.seq)
        if number % 2:
            ledger.commit(entry)
        else:
            ledger.void(entry)

    def rival_moves():
        try:
            charge(rival, "b" * 64, next(rounds))
        except WitnessUnavailable:
            return

    store = CrashingStore(inner, iter(moves), rival_moves)
    for number in (1, 2, 3, 4):
        for _ in range(50):
            ledger = Ledger(store, dataset="d", unit="row", key=KEY, clock=lambda: NOW)
            try:
                charge(ledger, "c" * 64, number)
            except (Crash, WitnessUnavailable):
                continue
            except PolicyRefused:  # voided in an earlier life
                pass
            break

    chain = read_ledger(inner, public_hex(KEY))
    prefix = keys.witness("site", "d", "row")
    held = [MemoryStore.list(each, prefix) for each in witness_stores]
    for seq in acknowledged:
        assert any(keys.witnessed_entry(prefix, seq) in listed for listed in held)
    verdicts = ask_witnesses(rival, chain.entries, witnesses, owner="site")
    assert [verdict.complaint for verdict in verdicts] == ["", ""]
    assert len(chain.events()) == sum(entry.kind == "reserve" for entry in chain.entries) - sum(
        entry.kind == "void" for entry in chain.entries
    )
    # A reader that follows along sees what one sees that starts afresh.
    assert rival.chain() == chain
