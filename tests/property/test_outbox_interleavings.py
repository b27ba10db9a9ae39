"""Any interleaving of processes of one site, each of which may die at any write.

Every process runs the site's steps against the real Outbox, but its store calls are done one at a
time, in an order that hypothesis draws, by replay: to go one step on, the process is run again
from its start with the answers it got before, then does one call more. So a process can be stopped
for good before or after any call (a crash) or be passed over for long (a zombie) without threads.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import ObjectMissing, PolicyRefused, RoundClosed
from fl_core.updates.outbox import Outbox

PREFIX = "exchanges/orders/c/0001/"
PLAN, FORKED_PLAN = hashlib.sha256(b"plan").hexdigest(), hashlib.sha256(b"fork").hexdigest()


class _StoppedError(Exception):
    """The process has done its one call."""


class _StepStore:
    """Gives recorded answers, then does one call on the shared store, then stops the process."""

    def __init__(self, shared: MemoryStore, answers: list) -> None:
        self._shared, self._answers, self._position = shared, answers, 0
        self._has_called = False

    def get(self, key, *, max_bytes=None):
        return self._do(lambda: self._shared.get(key, max_bytes=max_bytes))

    def put_once(self, key, data):
        return self._do(lambda: self._shared.put_once(key, data))

    def list(self, prefix):
        return self._do(lambda: self._shared.list(prefix))

    def _do(self, call: Callable):
        if self._position == len(self._answers):
            if self._has_called:
                raise _StoppedError
            self._has_called = True
            try:
                self._answers.append((True, call()))
            except ObjectMissing as error:
                self._answers.append((False, error))
        is_value, answer = self._answers[self._position]
        self._position += 1
        if not is_value:
            raise answer
        return answer


@dataclass
class Process:
    """One run of the site: what it would send, and whether it failed where it can be caught."""

    number: int
    fails: bool
    plan: str
    answers: list = field(default_factory=list)
    is_over: bool = False
    trained: bool = False
    caught: bool = False
    sent: dict[str, bytes] | None = None

    def step(self, shared: MemoryStore) -> None:
        if self.is_over:
            return
        try:
            self.sent = self._run(Outbox(_StepStore(shared, self.answers)))
        except _StoppedError:
            return
        except (RoundClosed, PolicyRefused):
            self.sent = None
        self.is_over = True

    def _run(self, outbox: Outbox) -> dict[str, bytes] | None:
        outbox.require_plan(PREFIX, self.plan)
        held = outbox.committed(PREFIX)
        if held is not None:
            return held
        try:
            outbox.begin_attempt(PREFIX)
        except RoundClosed:
            return outbox.committed(PREFIX)
        self.trained = True
        if self.fails:
            self.caught = True
            outbox.mark_failed(PREFIX, "training")
            return outbox.committed(PREFIX)
        # a fresh draw of noise per process, in files of which the first has a common name
        draw = f"draw {self.number}".encode()
        return outbox.commit(PREFIX, {"payload": draw, "manifest": b"of " + draw})


PROCESSES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([PLAN, PLAN, PLAN, FORKED_PLAN])),
    min_size=2,
    max_size=5,
)
# which process goes on, by how many calls, and whether it dies then; single calls as well as long
# runs, since three trainings need some thirty calls in the right order
MOVES = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([1, 1, 2, 4, 8, 20]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=30,
)


@settings(max_examples=400, deadline=None)
@given(kinds=PROCESSES, moves=MOVES, finish=st.booleans())
def test_at_most_one_set_of_files_leaves_whatever_dies_and_whoever_is_late(kinds, moves, finish):
    shared = MemoryStore()
    processes = [Process(n, fails, plan) for n, (fails, plan) in enumerate(kinds)]
    dead: set[int] = set()
    for number, n_calls, dies in moves:
        process = processes[number % len(processes)]
        for _ in range(n_calls if process.number not in dead else 0):
            process.step(shared)
        if dies:
            dead.add(process.number)
    if finish:
        for process in processes:
            while not process.is_over and process.number not in dead:
                process.step(shared)

    sent = [process.sent for process in processes if process.sent is not None]
    held = Outbox(shared).committed(PREFIX)

    assert all(files == sent[0] for files in sent)
    assert all(files == held for files in sent)
    assert all(files["manifest"] == b"of " + files["payload"] for files in sent)
    assert sum(process.trained for process in processes) <= 2
    assert len({process.plan for process in processes if process.trained}) <= 1
    if held is not None:
        author = int(held["payload"].split()[1])
        assert processes[author].trained
        assert not processes[author].caught


@settings(max_examples=200, deadline=None)
@given(moves=st.lists(st.integers(0, 1), max_size=60))
def test_two_living_zombies_always_end_with_the_same_files(moves):
    shared = MemoryStore()
    processes = [Process(n, fails=False, plan=PLAN) for n in range(2)]
    for number in moves:
        processes[number].step(shared)

    for process in processes:
        while not process.is_over:
            process.step(shared)

    assert processes[0].sent is not None
    assert processes[0].sent == processes[1].sent


@settings(max_examples=200, deadline=None)
@given(stop=st.integers(0, 40))
def test_a_run_after_a_crash_at_any_write_sends_one_set_and_all_later_runs_send_the_same(stop):
    shared = MemoryStore()
    first = Process(0, fails=False, plan=PLAN)
    for _ in range(stop):
        first.step(shared)

    later = [Process(n, fails=False, plan=PLAN) for n in (1, 2)]
    for process in later:
        while not process.is_over:
            process.step(shared)

    assert later[0].sent is not None
    assert later[0].sent == later[1].sent
    assert first.sent in (None, later[0].sent)


@dataclass
class Voider(Process):
    """A session that takes back the charge of an exchange, if it may."""

    has_voided: bool = False

    def _run(self, outbox: Outbox) -> None:
        self.has_voided = outbox.void(PREFIX)


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["trains", "fails", "voids"]), min_size=2, max_size=4),
    moves=MOVES,
    finish=st.booleans(),
)
def test_rule_12_a_charge_is_never_taken_back_for_what_is_or_will_be_trained(kinds, moves, finish):
    shared = MemoryStore()
    processes = [
        Voider(n, fails=False, plan=PLAN)
        if kind == "voids"
        else Process(n, fails=kind == "fails", plan=PLAN)
        for n, kind in enumerate(kinds)
    ]
    dead: set[int] = set()
    for number, n_calls, dies in moves:
        process = processes[number % len(processes)]
        for _ in range(n_calls if process.number not in dead else 0):
            process.step(shared)
        if dies:
            dead.add(process.number)
    for process in processes if finish else ():
        while not process.is_over and process.number not in dead:
            process.step(shared)
    # Whoever comes after all of them, also after a crash between tombstone and ledger.
    late = [Process(10, fails=False, plan=PLAN), Voider(11, fails=False, plan=PLAN)]
    for process in late:
        while not process.is_over:
            process.step(shared)

    everybody = [*processes, *late]
    if any(isinstance(each, Voider) and each.has_voided for each in everybody):
        assert not any(each.trained for each in everybody)
        assert not any(each.sent for each in everybody)


def test_rule_12_an_exchange_nobody_began_can_be_voided_again_and_again():
    outbox = Outbox(MemoryStore())
    outbox.require_plan(PREFIX, PLAN)

    answers = [outbox.void(PREFIX), outbox.void(PREFIX)]

    assert answers == [True, True]
