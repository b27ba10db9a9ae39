"""The exact trade between noise and (epsilon, delta) of Gaussian releases that draw everybody.

Everything follows from one number, ``mu`` = L2 sensitivity / noise stddev, and several releases are
one of ``mu = sqrt(sum of squares)``, also when each was chosen in view of the earlier ones: the sum
of squares is a filter. So whole sites, whose rounds are never sampled, need no other accountant.
Where floating point cannot decide, answers err towards more noise and a larger epsilon.

Source: Balle and Wang 2018, theorem 8; Dong, Roth and Su 2022, corollary 3.3; the filter is that of
Smith and Thakurta 2022 and of Koskela, Tobaben and Honkela 2023.
"""

import math
from collections.abc import Callable

from fl_core.errors import PrivacyError

# erfc, exp and log are right to a few units in the last place; exponents carry theirs over.
_ROUNDING = 2e-15
_FAR_TAIL = -36.0


def gaussian_epsilon(*, sigma: float, sensitivity: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian release; 0 where ``delta`` alone covers it.

    Args:
        sigma: Noise stddev, in units of the released value; 0 gives inf.
        sensitivity: L2 sensitivity, same units, > 0.
        delta: In (0, 1).

    Raises:
        PrivacyError: A number outside its range.
    """
    _require_release(delta=delta, sensitivity=sensitivity)
    if isinstance(sigma, bool) or not 0 <= sigma < math.inf:
        raise PrivacyError(f"sigma is {sigma}, it must be 0 or more and finite")
    return math.inf if sigma == 0 else epsilon_of_mu(sensitivity / sigma, delta=delta)


def epsilon_of_mu(mu: float, *, delta: float) -> float:
    """Return the epsilon at ``delta`` in (0, 1) of releases that amount to ``mu`` >= 0."""
    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # Beyond this, epsilon is no statement about privacy, and its square leaves the numbers.
    if mu > 1e100:  # noqa: PLR2004  far under the square root of the largest float
        return math.inf
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    return _bisected(lambda found: gaussian_delta(mu, found) <= delta, low, high)


def gaussian_sigma(*, epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the smallest noise stddev that makes one release (epsilon, delta)-DP.

    The classical ``sqrt(2 ln(1.25 / delta)) / epsilon`` is wrong above epsilon 1, loose below it.

    Args:
        epsilon: Target, > 0.
        delta: In (0, 1).
        sensitivity: L2 sensitivity, > 0; the result has its units.

    Raises:
        PrivacyError: A number outside its range.
    """
    _require_release(delta=delta, sensitivity=sensitivity)
    if isinstance(epsilon, bool) or not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon is {epsilon}, it must be above 0 and finite")
    low = high = 1.0
    while gaussian_delta(1 / high, epsilon) > delta:
        high *= 2
    while gaussian_delta(1 / low, epsilon) <= delta:
        low /= 2
    multiplier = _bisected(lambda z: gaussian_delta(1 / z, epsilon) <= delta, low, high)
    return multiplier * sensitivity


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest delta of releases that amount to ``mu`` > 0, rounded up.

    ``delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)``.
    """
    upper = math.exp(_log_normal_cdf(mu / 2 - epsilon / mu))
    exponent = epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu)
    second = math.exp(min(exponent, 0.0))
    margin = _ROUNDING * (upper + second * (1 + 2 * epsilon - exponent))
    return max(upper - second + margin, math.ulp(0.0))


def _log_normal_cdf(x: float) -> float:
    if x > _FAR_TAIL:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    # The tail underflows further on, where its logarithm is still needed: DLMF 7.12.1.
    t = 1 / (x * x)
    series = -t * (1 - t * (3 - t * (15 - t * (105 - t * 945))))
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2 + math.log1p(series)


def _require_release(*, delta: float, sensitivity: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, it must lie between 0 and 1, both excluded")
    if isinstance(sensitivity, bool) or not 0 < sensitivity < math.inf:
        raise PrivacyError(f"sensitivity is {sensitivity}, it must be above 0 and finite")


def _bisected(is_enough: Callable[[float], bool], low: float, high: float) -> float:
    # Keeps the upper end, which is known to be enough.
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
