"""From (epsilon, delta) to noise: how much a campaign needs, never landing above its target.

The search runs on a coarse grid and is finished on the recorded one. What is returned has been
accounted for: its epsilon is at or under the target by the same accountant that will charge it.
Releases that draw everybody need no search: their curve is exact in both directions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fl_core.errors import IncompatibleParts, PrivacyError
from fl_core.privacy.accounting import LIVE_GRID, RECORD_GRID, Accountant
from fl_core.privacy.accounting import epsilon as accounted_epsilon
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.gaussian_curve import epsilon_of_mu, gaussian_epsilon, gaussian_sigma

__all__ = [
    "calibrate_gaussian_multiplier",
    "calibrate_noise_multiplier",
    "gaussian_epsilon",
    "gaussian_sigma",
]

# Noise under this multiplier keeps no useful promise; a target that allows less gets this much.
SMALLEST_MULTIPLIER = 0.05
LARGEST_MULTIPLIER = 1e5
TOLERANCE = 1e-3
# Grid of each search, how far it steps from where the last one ended, and when it is content.
_BY_PLD = (
    (10 * LIVE_GRID, 0.75, TOLERANCE / 2),
    (LIVE_GRID, 0.99, TOLERANCE / 2),
    (RECORD_GRID, 0.99, TOLERANCE),
)


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: Accountant = "pld",
) -> float:
    """Return a noise multiplier for DP-SGD whose epsilon is at most ``epsilon``.

    It is at most about 0.1 % above the smallest one, and rounded up to six digits.

    Args:
        epsilon: Target for all steps together, > 0.
        delta: In (0, 1).
        sampling_rate: Poisson probability per step, in (0, 1].
        steps: All steps of the campaign, >= 1.
        accountant: Which bound must hold.

    Raises:
        PrivacyError: A number outside its range.
        IncompatibleParts: No noise multiplier up to 1e5 keeps the target.
    """
    if isinstance(epsilon, bool) or not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon is {epsilon}, it must be above 0 and finite")
    if steps < 1 or not 0 < sampling_rate <= 1:
        raise PrivacyError(
            f"nothing to calibrate with {steps} steps at sampling_rate {sampling_rate}; "
            "both must be above 0"
        )

    def spent(multiplier: float, by: Accountant, grid: float) -> float:
        event = dpsgd_event(noise_multiplier=multiplier, sampling_rate=sampling_rate, steps=steps)
        return accounted_epsilon([event], delta=delta, accountant=by, grid=grid)

    # RDP costs a hundredth of PLD and a coarse grid a fraction of a fine one, so each narrows for
    # the next; only the last search decides.
    enough = _bracket_above(partial(spent, by="rdp", grid=LIVE_GRID), target=epsilon)
    narrowing = _BY_PLD if accountant == "pld" else ((RECORD_GRID, 0.75, TOLERANCE),)
    for grid, factor, tolerance in narrowing:
        search = _Search(target=epsilon, factor=factor, tolerance=tolerance)
        enough = search.run(partial(spent, by=accountant, grid=grid), enough)
    return enough


def calibrate_gaussian_multiplier(*, epsilon: float, delta: float, rounds: int) -> float:
    """Return the noise multiplier of Gaussian rounds that all draw everybody, by the exact curve.

    It is rounded up to six digits, so that ``rounds`` of them end at most at ``epsilon``.

    Args:
        epsilon: Target for all rounds together, > 0.
        delta: In (0, 1).
        rounds: Rounds of the campaign, >= 1.

    Raises:
        PrivacyError: A number outside its range.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise PrivacyError(f"rounds is {rounds!r}, it must be a whole number above 0")
    whole = gaussian_sigma(epsilon=epsilon, delta=delta, sensitivity=1.0)
    multiplier = _rounded_up(max(whole * math.sqrt(rounds), SMALLEST_MULTIPLIER))
    # The root may have been rounded down where the six digits end.
    while epsilon_of_mu(math.sqrt(rounds) / multiplier, delta=delta) > epsilon:
        multiplier = _rounded_up(math.nextafter(multiplier, math.inf))
    return multiplier


def _bracket_above(spent: Callable[[float], float], *, target: float) -> float:
    multiplier = 1.0
    while spent(multiplier) > target:
        multiplier *= 2
        if multiplier > LARGEST_MULTIPLIER:
            raise IncompatibleParts(
                f"no noise_multiplier up to {LARGEST_MULTIPLIER:g} keeps epsilon {target:g}; "
                "raise epsilon or delta, or take fewer steps"
            )
    return multiplier


@dataclass(frozen=True, slots=True)
class _Search:
    """Search for the smallest multiplier that keeps a target; epsilon falls as noise grows.

    Attributes:
        target: Epsilon to keep.
        factor: By how much to go down (and up by its inverse) until the target lies between.
        tolerance: The search ends when epsilon is this close under its target, relatively, or a
            multiplier this close to the result is known to be too small.
    """

    target: float
    factor: float
    tolerance: float

    def run(self, spent: Callable[[float], float], start: float) -> float:
        """Return a multiplier, rounded up to six digits, for which ``spent`` was <= target."""
        enough = _rounded_up(start)
        while spent(enough) > self.target:
            enough = _rounded_up(enough / self.factor)
        too_little = enough
        while spent(too_little) <= self.target:
            enough = too_little
            if enough <= SMALLEST_MULTIPLIER or self._is_close(spent(enough)):
                return enough
            too_little = max(_rounded_up(enough * self.factor), SMALLEST_MULTIPLIER)
        while enough / too_little > 1 + self.tolerance and not self._is_close(spent(enough)):
            middle = _rounded_up(math.sqrt(enough * too_little))
            if spent(middle) <= self.target:
                enough = middle
            else:
                too_little = middle
        return enough

    def _is_close(self, after: float) -> bool:
        # Epsilon falls at least as fast as noise grows, so noise is as close as epsilon is.
        return after >= self.target * (1 - self.tolerance)


def _rounded_up(multiplier: float) -> float:
    unit = 10.0 ** (5 - math.floor(math.log10(multiplier)))
    return math.ceil(multiplier * unit) / unit
