"""What accounting costs after 10, 100 and 1000 rounds, side by side in one process.

    python -m benchmarks.accounting
    python -m benchmarks.accounting --json

Measured is what the product calls in a round: the live epsilon (grid 1e-3), the verdict before a
charge (grid 1e-4, the recorded one), and the rounds left that a statement names, each for a number
of steps that this process has not composed yet, and the live epsilon once more, which is then
cached. Three ledgers: one approved series decided by PLD, five kinds of steps decided by RDP, and a
whole site decided by GDP. Times are processor seconds of this thread, medians over interleaved
repetitions. The exit status is 1 if a live epsilon takes 100 ms, a verdict 1 s, or if either grows
with the rounds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from fl_core.privacy.accounting import LIVE_GRID
from fl_core.privacy.budget import spend, verdict
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.forecast import rounds_left
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.updates.records import EventRecord, GaussianEvent, Series

ROUNDS = (10, 100, 1000)
STEPS = 10
# Far enough on that no repetition finds what an earlier one has composed.
STRIDE = 3
LIMITS_S = {"live": 0.1, "verdict": 1.0}
# A cost that grew with the rounds would be a hundred times higher after 1000 than after 10.
FLAT = 2.0
QUESTIONS = ("live", "live again", "verdict", "rounds left")


@dataclass(frozen=True)
class Ledger:
    """A kind of ledger: the limits it is held to and the event of its n-th round."""

    name: str
    policy: SitePolicy
    event: Callable[[int], EventRecord]

    def events(self, rounds: int) -> list[EventRecord]:
        return [self.event(number) for number in range(rounds)]


def policy_of(unit: str, *, series: Series | None = None) -> SitePolicy:
    return SitePolicy(
        dataset="rows",
        unit=unit,
        epsilon=1e5,
        delta=1e-5,
        series=series,
        rdp_order=8.0,
        base_models="*",
        suites="*",
    )


def ledgers() -> list[Ledger]:
    series = Series(noise_multiplier=1.0, sampling_rate=0.016, max_steps=20_000)
    kinds = [(1.0, 0.016), (0.8, 0.01), (1.2, 0.02), (2.0, 0.1), (1.5, 0.05)]
    return [
        Ledger("one series, PLD", policy_of("row", series=series), lambda _: _steps(1.0, 0.016)),
        Ledger("five kinds, RDP", policy_of("row"), lambda number: _steps(*kinds[number % 5])),
        Ledger("a site, GDP", policy_of("site"), lambda _: GaussianEvent(noise_multiplier=20.0)),
    ]


def _steps(noise: float, rate: float) -> EventRecord:
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=STEPS)


def measure(ledger: Ledger, repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds by question and rounds; every repetition is a few rounds further on."""
    found: dict[str, dict[int, list[float]]] = {q: {r: [] for r in ROUNDS} for q in QUESTIONS}
    for repeat in range(repeats + 1):
        for rounds in ROUNDS:
            charged = rounds + STRIDE * repeat
            events, new = ledger.events(charged), ledger.event(charged)
            asked: dict[str, Callable[[], object]] = {
                "live": lambda e=events: spend(ledger.policy, e, grid=LIVE_GRID),
                "live again": lambda e=events: spend(ledger.policy, e, grid=LIVE_GRID),
                "verdict": lambda e=events, n=new: verdict(ledger.policy, e, n),
                "rounds left": lambda e=events, n=new: rounds_left(ledger.policy, [*e, n], n),
            }
            for question in QUESTIONS:
                seconds = _seconds(asked[question])
                # The first time pays for imports and for the distribution of one step.
                if repeat:
                    found[question][rounds].append(seconds)
    return {q: {r: statistics.median(t) for r, t in by.items()} for q, by in found.items()}


def _seconds(call: Callable[[], object]) -> float:
    before = time.thread_time()
    call()
    return time.thread_time() - before


def broken_limits(figures: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """What is slower than promised, or grows with the rounds, in words."""
    broken = []
    for name, questions in figures.items():
        for question, limit in LIMITS_S.items():
            times = questions[question]
            if (worst := max(times.values())) > limit:
                broken.append(f"{name}: {question} takes {worst:.3f} s, the limit is {limit:g} s")
            # Under ten milliseconds the events themselves, which are read, are what is measured.
            if times[ROUNDS[-1]] > max(FLAT * times[ROUNDS[0]], 0.01):
                broken.append(f"{name}: {question} grows with the rounds: {times}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {ledger.name: measure(ledger, options.repeats) for ledger in ledgers()}
    broken = broken_limits(figures)
    if options.json:
        print(json.dumps({"seconds": figures, "broken": broken}))
    else:
        print(f"{'ledger':<18}{'question':<13}" + "".join(f"{r:>9}" for r in ROUNDS) + "   ratio")
        for name, questions in figures.items():
            for question, times in questions.items():
                row = "".join(f"{1000 * times[r]:>6.1f} ms" for r in ROUNDS)
                ratio = times[ROUNDS[-1]] / times[ROUNDS[0]]
                print(f"{name:<18}{question:<13}{row}{ratio:>8.2f}")
        print("\n".join(broken) or "all within their limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
