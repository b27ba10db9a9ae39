"""The one-run audit's estimator: known bounds, ceilings, guesses needed, brute force, refusals."""

import itertools
import math

import numpy as np
import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.auditing import audit_ceiling, audit_lower_bound, guesses_to_refute

HALF = {"delta": 0.0, "confidence": 0.95}


# Clopper and Pearson by hand: all right of r guesses is refuted while q^r < .05, so the bound is
# logit(.05^(1/r)). The privacy notes give 3.49 and 5.81 for r = 100 and 1000.
@pytest.mark.parametrize("guesses", [1, 5, 6, 10, 100, 1000, 5000])
def test_ceiling_is_the_logit_of_a_root(guesses):
    q = 0.05 ** (1 / guesses)
    expected = max(0.0, math.log(q / (1 - q)))

    ceiling = audit_ceiling(guesses=guesses, canaries=5000, **HALF)

    assert ceiling == pytest.approx(expected, abs=1e-9)


# The privacy notes: right guesses in a row that refute 1, 2, 4, 8 at 95 %.
@pytest.mark.parametrize(("claim", "needed"), [(1, 10), (2, 24), (4, 166), (8, 8932)])
def test_so_many_right_guesses_refute_a_claim(claim, needed):
    assert guesses_to_refute(epsilon=claim, **HALF) == needed
    assert audit_ceiling(guesses=needed, canaries=needed, **HALF) > claim
    assert audit_ceiling(guesses=needed - 1, canaries=needed, **HALF) <= claim


def test_claim_beyond_the_canaries_cannot_be_refuted():
    assert guesses_to_refute(epsilon=8, canaries=5000, **HALF) is None
    assert guesses_to_refute(epsilon=800.0, **HALF) is None


def test_delta_asks_for_more_guesses_and_never_for_fewer():
    needed = [
        guesses_to_refute(epsilon=4.0, delta=delta, confidence=0.95, canaries=5000)
        for delta in (0.0, 1e-6, 1e-5, 1e-4)
    ]

    assert needed == sorted(needed)
    assert needed[0] == 166
    assert needed[-1] > 166


def _binomial(r, q):
    return [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]


def _bound_by_search(guesses, correct, canaries, delta, confidence):
    """The paper's bound, term by term with exact binomials, on a fine grid of epsilon from 0 up."""
    bound = 0.0
    for epsilon in np.arange(0.0, 12.0, 1e-3):
        chance = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
        tail = sum(chance[correct:])
        slack = max(
            (sum(chance[correct - i : correct]) / i for i in range(1, correct + 1)), default=0
        )
        if tail + 2 * canaries * delta * slack >= 1 - confidence:
            return bound
        bound = epsilon
    return bound


CASES = [
    (guesses, correct, canaries, delta)
    for (guesses, canaries), share, delta in itertools.product(
        [(1, 1), (5, 5), (12, 12), (12, 40), (30, 30)], [0.0, 0.5, 0.8, 1.0], [0.0, 1e-4, 1e-2]
    )
    for correct in [round(share * guesses)]
]


@pytest.mark.parametrize(("guesses", "correct", "canaries", "delta"), CASES)
def test_bound_agrees_with_brute_force(guesses, correct, canaries, delta):
    bound = audit_lower_bound(
        guesses=guesses, correct=correct, canaries=canaries, delta=delta, confidence=0.9
    )

    expected = _bound_by_search(guesses, correct, canaries, delta, 0.9)
    assert bound == pytest.approx(expected, abs=1.1e-3)


def test_bound_rises_with_right_guesses_and_falls_with_confidence_canaries_and_delta():
    def bound(correct=900, canaries=2000, delta=1e-5, confidence=0.95):
        return audit_lower_bound(
            guesses=1000, correct=correct, canaries=canaries, delta=delta, confidence=confidence
        )

    by_correct = [bound(correct=c) for c in (500, 600, 800, 900, 990, 1000)]
    assert by_correct == sorted(by_correct)
    assert bound(confidence=0.99) < bound() < bound(confidence=0.5)
    assert bound(canaries=100_000, delta=1e-4) < bound(delta=1e-4) < bound(delta=0.0)


def test_five_thousand_canaries_are_answered_with_all_digits():
    # A naive product of binomials overflows at r = 1030 and underflows at q^r of 1e-324.
    bound = audit_lower_bound(guesses=5000, correct=5000, canaries=5000, **HALF)

    assert bound == pytest.approx(-math.log(math.expm1(-math.log(0.05) / 5000)), rel=1e-9)


# The claim of the bound itself: a mechanism that is epsilon-DP is accused of more at most as often
# as 1 - confidence. Randomized response is the mechanism that the theorem is tight for. 4000 runs
# with a true rate of .05: more than 265 are a false alarm of 1e-6 (normal tail, z = 4.75).
def test_randomized_response_is_rarely_accused_of_more_than_it_spends():
    rng = np.random.default_rng(7)
    epsilon, guesses = 2.0, 60
    right = rng.binomial(guesses, 1 / (1 + math.exp(-epsilon)), size=4000)
    bounds = {
        int(k): audit_lower_bound(guesses=guesses, correct=int(k), canaries=guesses, **HALF)
        for k in set(right.tolist())
    }

    accused = sum(bounds[int(k)] > epsilon for k in right)

    assert 0 < accused <= 265


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"guesses": 11}, "guesses about"),
        ({"correct": 9}, "right of"),
        ({"correct": -1}, "correct"),
        ({"correct": 1.5}, "correct"),
        ({"canaries": True}, "canaries"),
        ({"canaries": 10**8}, "canaries"),
        ({"delta": -1e-5}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.0}, "confidence"),
        ({"confidence": True}, "confidence"),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused_by_name(numbers, named):
    possible = {"guesses": 8, "correct": 8, "canaries": 10, "delta": 0.0, "confidence": 0.95}

    with pytest.raises(PrivacyError, match=named):
        audit_lower_bound(**(possible | numbers))


@pytest.mark.parametrize("claim", [-1.0, math.inf, math.nan, True])
def test_claim_that_is_no_epsilon_is_refused(claim):
    with pytest.raises(PrivacyError, match="epsilon"):
        guesses_to_refute(epsilon=claim, **HALF)
