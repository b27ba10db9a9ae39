"""What right guesses about canaries prove: a lower bound on epsilon from one training run.

Each of ``m`` canaries is put in or left out by a fair coin; whoever looks at the result guesses the
coins of ``r`` of them and abstains on the rest. Under (epsilon, delta)-DP the number of right
guesses is hardly larger than that of ``r`` coins which land right with ``e^epsilon / (1 +
e^epsilon)``, so many right guesses refute an epsilon. Functions of four numbers; no run, no rows.

What can be proven is bounded by the number of guesses: even if all are right there is a ceiling,
and a claim above it cannot be refuted. That says nothing in favour of the claim.

Source: Steinke, Nasr and Jagielski 2023, theorem 5.2 and its proof of the delta term.
"""

import math

import numpy as np
import numpy.typing as npt

from fl_core.errors import PrivacyError

_Logs = npt.NDArray[np.float64]

# The bound is the first epsilon that is not refuted, found to this fineness from below.
_STRIDE = 1 / 32
_MOST_GUESSES = 10**7


def audit_lower_bound(
    *, guesses: int, correct: int, canaries: int, delta: float, confidence: float
) -> float:
    """Return the largest epsilon that the guesses refute; 0 if they refute none.

    With probability ``confidence`` over coins and training, a mechanism that is (epsilon, delta)-DP
    under add/remove of one canary has an epsilon of at least this. It speaks of the audited run's
    mechanism only.

    Args:
        guesses: r, canaries that were guessed; the others were abstained from.
        correct: Right ones among them.
        canaries: m, all canaries, each in or out by a fair coin.
        delta: The claim's delta, in [0, 1).
        confidence: In (0, 1).

    Raises:
        PrivacyError: A number outside its range.
    """
    _require_counts(guesses=guesses, correct=correct, canaries=canaries)
    _require_risk(delta=delta, confidence=confidence)
    run = _Guessed(guesses, correct, canaries, delta)
    level = 1 - confidence
    if run.p_value(0.0) >= level:
        return 0.0
    # Going up from 0, so that every smaller epsilon is refuted as well: then the bound is wrong
    # only where the true epsilon's own test is, and the confidence holds for all of them at once.
    low = 0.0
    while run.p_value(low + _STRIDE) < level:
        low += _STRIDE
    high = low + _STRIDE
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if run.p_value(middle) < level else (low, middle)
    return low


def audit_ceiling(*, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """Return the bound that the audit gives if every guess is right: it can prove no more.

    Raises:
        PrivacyError: A number outside its range.
    """
    return audit_lower_bound(
        guesses=guesses, correct=guesses, canaries=canaries, delta=delta, confidence=confidence
    )


def guesses_to_refute(
    *, epsilon: float, delta: float, confidence: float, canaries: int | None = None
) -> int | None:
    """Return how many guesses, all right, are needed to refute a claim of ``epsilon``.

    Args:
        epsilon: The claim, >= 0.
        delta: The claim's delta, in [0, 1).
        confidence: In (0, 1).
        canaries: All canaries of the audit; None: no more than are guessed.

    Returns:
        The smallest such number; None where no number of guesses (of the canaries) is enough.

    Raises:
        PrivacyError: A number outside its range.
    """
    _require_risk(delta=delta, confidence=confidence)
    if isinstance(epsilon, bool) or not 0 <= epsilon < math.inf:
        raise PrivacyError(f"epsilon is {epsilon}, it must be 0 or more and finite")
    most = _MOST_GUESSES
    if canaries is not None:
        _require_counts(guesses=0, correct=0, canaries=canaries)
        most = canaries

    def is_refuted(guesses: int) -> bool:
        run = _Guessed(guesses, guesses, guesses if canaries is None else canaries, delta)
        return run.p_value(epsilon) < 1 - confidence

    if _log_right(epsilon) == 0:
        return None
    # Without delta r right guesses have the chance q^r, so none smaller than this is enough.
    least = max(1, math.ceil(math.log1p(-confidence) / _log_right(epsilon) - 1e-9))
    low, high = least - 1, least
    while high <= most and not is_refuted(high):
        low, high = high, 2 * high
    if high > most:
        if low >= most or not is_refuted(most):
            return None
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_refuted(middle) else (middle, high)
    return high


class _Guessed:
    """The outcome of an audit, with the logarithms that every p-value of it needs."""

    def __init__(self, guesses: int, correct: int, canaries: int, delta: float) -> None:
        self.guesses, self.correct, self.canaries, self.delta = guesses, correct, canaries, delta
        self._right = np.arange(guesses + 1, dtype=np.float64)
        factorials = np.concatenate([[0.0], np.cumsum(np.log(self._right[1:]))])
        self._ways: _Logs = factorials[-1] - factorials - factorials[::-1]

    def p_value(self, epsilon: float) -> float:
        """Return a bound on the chance of so many right guesses under (epsilon, delta)-DP.

        ``P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i``, B binomial of r guesses, i from 1.
        """
        chance = np.exp(
            self._ways
            + self._right * _log_right(epsilon)
            + self._right[::-1] * (_log_right(epsilon) - epsilon)
        )
        at_least = float(np.sum(chance[self.correct :]))
        if self.delta == 0 or self.correct == 0:
            return min(1.0, at_least)
        below = np.cumsum(chance[: self.correct][::-1])
        steepest = float(np.max(below / np.arange(1, self.correct + 1)))
        return min(1.0, at_least + 2 * self.canaries * self.delta * steepest)


def _log_right(epsilon: float) -> float:
    # log(e^epsilon / (1 + e^epsilon)); that of a wrong guess is lower by epsilon.
    return -math.log1p(math.exp(-epsilon))


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_GUESSES:
            raise PrivacyError(f"{name} is {count!r}, it must be a whole number of 0 or more")
    if not counts["correct"] <= counts["guesses"] <= counts["canaries"]:
        raise PrivacyError(
            f"{counts['correct']} right of {counts['guesses']} guesses about {counts['canaries']} "
            "canaries cannot be; right ones are among the guesses, guesses among the canaries"
        )


def _require_risk(*, delta: float, confidence: float) -> None:
    if isinstance(delta, bool) or not 0 <= delta < 1:
        raise PrivacyError(f"delta is {delta}, it must be 0 or more and below 1")
    if isinstance(confidence, bool) or not 0 < confidence < 1:
        raise PrivacyError(f"confidence is {confidence}, it must lie between 0 and 1")
