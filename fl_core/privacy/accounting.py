"""From events to (epsilon, delta), by dp_accounting and, without sampling, by the exact curve.

Three accountants. PLD composes privacy loss distributions numerically and is tight; it gives the
recorded number. RDP composes Renyi divergences and is looser; at one order fixed beforehand it
stays valid when events are chosen in view of earlier results, which PLD does not (SOUNDNESS 15).
GDP is exact and valid in that sense too, for Gaussian events that draw everybody and for no other.
All answer with upper bounds. The grid of PLD rounds up: a coarser one is faster and never below.
Results are cached in the process, so that a live display costs one composition per new count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fl_core.errors import PrivacyError
from fl_core.privacy.accountants import (
    RECORD_GRID,
    Steps,
    pld_of,
    pld_points,
    rdp_epsilon_of,
    rdp_of,
    rdp_of_best,
)
from fl_core.privacy.events import BaseEvent, merged
from fl_core.privacy.gaussian_curve import epsilon_of_mu, gaussian_delta
from fl_core.updates.records import (
    Accountant,
    EventRecord,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    WithoutReplacementEvent,
)

__all__ = [
    "LIVE_GRID",
    "POISSON",
    "RECORD_GRID",
    "Accountant",
    "Adjacency",
    "Epsilons",
    "both_epsilons",
    "delta_of",
    "epsilon",
    "pld_cost",
    "rdp_epsilon_at_order",
    "tuning_epsilon",
]

Adjacency = Literal["add_remove", "replace_one"]

# Shape of the number of tuning runs.
POISSON = math.inf

LIVE_GRID = 1e-3
# Events come from other machines too; a larger count is no training, and leaves the numbers.
_MOST_STEPS = 10**15


@dataclass(frozen=True, slots=True)
class Epsilons:
    """What the same events amount to by two accountants, for display; which decides is a rule.

    Attributes:
        pld: Tight for events that were fixed beforehand.
        rdp: At the best of the default orders; a cross-check that PLD must not exceed by much.
    """

    pld: float
    rdp: float


def epsilon(
    events: Sequence[EventRecord],
    *,
    delta: float,
    accountant: Accountant = "pld",
    grid: float = RECORD_GRID,
    adjacency: Adjacency = "add_remove",
) -> float:
    """Return the epsilon of all events together, for one unit.

    Args:
        events: Everything that touched the unit's data, in any order.
        delta: In (0, 1), fixed before training.
        accountant: ``pld``; ``rdp`` over dp_accounting's default orders; ``gdp``, which is exact
            for Gaussian events without sampling and inf as soon as there is another.
        grid: Value grid of PLD; coarser is faster and answers higher, never lower.
        adjacency: ``add_remove``, or ``replace_one``, where a replaced unit moves a sum of clipped
            vectors twice as far; Poisson batches are accounted under the first only, draws
            without replacement under the second only.

    Returns:
        An upper bound; 0 without events, inf after a step without noise.

    Raises:
        PrivacyError: ``delta`` outside (0, 1), or an event that cannot be accounted for so.
    """
    _require_delta(delta)
    _require_grid(grid)
    return _epsilon(_steps(events, accountant, adjacency), delta, accountant, grid)


def both_epsilons(
    events: Sequence[EventRecord], *, delta: float, grid: float = RECORD_GRID
) -> Epsilons:
    """Return epsilon by PLD and by RDP, under add/remove.

    Raises:
        PrivacyError: As ``epsilon``.
    """
    return Epsilons(
        pld=epsilon(events, delta=delta, accountant="pld", grid=grid),
        rdp=epsilon(events, delta=delta, accountant="rdp"),
    )


def pld_cost(events: Sequence[EventRecord], *, grid: float = RECORD_GRID) -> float:
    """Return about how many points PLD under add/remove works on; a million take seconds.

    Raises:
        PrivacyError: As ``epsilon``.
    """
    steps = _steps(events, "pld", "add_remove")
    return 0.0 if not steps or _is_unbounded(steps) else pld_points(steps, grid=grid)


def delta_of(
    events: Sequence[EventRecord],
    *,
    epsilon: float,
    accountant: Accountant = "pld",
    grid: float = RECORD_GRID,
) -> float:
    """Return the delta of all events together at ``epsilon`` >= 0; 1 after a step without noise.

    Raises:
        PrivacyError: ``epsilon`` negative or not a number, or an event that cannot be accounted
            for under add/remove.
    """
    if isinstance(epsilon, bool) or not epsilon >= 0:
        raise PrivacyError(f"epsilon is {epsilon}, it must be 0 or more")
    _require_grid(grid)
    return _delta(_steps(events, accountant, "add_remove"), epsilon, accountant, grid)


def rdp_epsilon_at_order(events: Sequence[EventRecord], *, delta: float, order: float) -> float:
    """Return the epsilon by RDP at one fixed order, valid for adaptively chosen events.

    Raises:
        PrivacyError: ``delta`` outside (0, 1), or an order of 1 or less.

    Source: Feldman and Zrnic 2021, theorem 3.1 (RDP filter at one order); conversion of
    Canonne, Kamath and Steinke 2020, proposition 12, as dp_accounting implements it.
    """
    _require_delta(delta)
    if not 1 < order < math.inf:
        raise PrivacyError(f"order is {order}, it must be above 1 and finite")
    return _epsilon_at_order(_steps(events, "rdp", "add_remove"), delta, float(order))


def tuning_epsilon(
    events: Sequence[EventRecord], *, delta: float, expected_trials: float, shape: float = POISSON
) -> float:
    """Return the epsilon, by RDP, of releasing only the best of a random number of equal runs.

    The number of runs must be drawn from the distribution before the first of them, and nothing of
    the others may be looked at. A number fixed beforehand composes all its runs instead.

    Args:
        events: Everything that one run charges.
        delta: In (0, 1).
        expected_trials: Mean of the number of runs, >= 1.
        shape: Of the number's distribution: ``POISSON``, or that of a truncated negative binomial,
            1 being the geometric and 0 the logarithmic distribution.

    Raises:
        PrivacyError: A number outside its range, or an event that RDP does not take.

    Source: Papernot and Steinke 2022, theorems 2 and 6, as dp_accounting implements them.
    """
    _require_delta(delta)
    if isinstance(expected_trials, bool) or not 1 <= expected_trials < math.inf:
        raise PrivacyError(f"expected_trials is {expected_trials}, it must be 1 or more and finite")
    if isinstance(shape, bool) or not shape >= 0:
        raise PrivacyError(f"shape is {shape}, it must be 0 or more, or POISSON")
    return _tuning_epsilon(_steps(events, "rdp", "add_remove"), delta, expected_trials, shape)


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, it must lie between 0 and 1, both excluded")


def _require_grid(grid: float) -> None:
    if not 0 < grid < math.inf:
        raise PrivacyError(f"grid is {grid}, it must be above 0 and finite")


def _steps(events: Sequence[EventRecord], accountant: Accountant, adjacency: Adjacency) -> Steps:
    steps = tuple(merged(events))
    for base, count in steps:
        if count > _MOST_STEPS:
            raise PrivacyError(f"more than {_MOST_STEPS:g} equal steps; check the event")
        _require_accountable(base, accountant, adjacency)
    if adjacency == "add_remove":
        return steps
    return tuple((_of_replaced(base), count) for base, count in steps)


def _require_accountable(base: BaseEvent, accountant: Accountant, adjacency: Adjacency) -> None:
    if isinstance(base, PoissonEvent) and adjacency == "replace_one":
        raise PrivacyError("poisson batches are accounted under add_remove, not replace_one")
    if not isinstance(base, WithoutReplacementEvent):
        return
    if adjacency != "replace_one" or accountant != "rdp":
        raise PrivacyError(
            f"draws without replacement are accounted by rdp under replace_one, not by "
            f"{accountant} under {adjacency}; draw poisson batches instead"
        )


def _of_replaced(base: BaseEvent) -> BaseEvent:
    # A ledger's multiplier is stddev / C; a replaced unit moves the sum by up to 2 C.
    if isinstance(base, GaussianEvent):
        return GaussianEvent(noise_multiplier=base.noise_multiplier / 2)
    return base


def _is_unbounded(steps: Steps) -> bool:
    return any(
        isinstance(base, NonPrivateEvent) or _noise_multiplier(base) == 0 for base, _ in steps
    )


def _noise_multiplier(base: GaussianEvent | PoissonEvent | WithoutReplacementEvent) -> float:
    return base.noise_multiplier if isinstance(base, GaussianEvent) else base.event.noise_multiplier


@lru_cache(maxsize=4096)
def _epsilon(steps: Steps, delta: float, accountant: Accountant, grid: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    match accountant:
        case "gdp":
            return epsilon_of_mu(_mu(steps), delta=delta)
        case "rdp":
            return float(rdp_of(steps).get_epsilon(delta))
        case "pld":
            return float(pld_of(steps, grid=grid).get_epsilon_for_delta(delta))


@lru_cache(maxsize=4096)
def _delta(steps: Steps, epsilon: float, accountant: Accountant, grid: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return 1.0
    match accountant:
        case "gdp":
            mu = _mu(steps)
            return 1.0 if mu == math.inf else min(1.0, gaussian_delta(mu, epsilon))
        case "rdp":
            return float(rdp_of(steps).get_delta(epsilon))
        case "pld":
            return float(pld_of(steps, grid=grid).get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=256)
def _tuning_epsilon(steps: Steps, delta: float, expected_trials: float, shape: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    accountant = rdp_of_best(steps, expected_trials=expected_trials, shape=shape)
    return float(accountant.get_epsilon(delta))


def _mu(steps: Steps) -> float:
    """Return the one number that Gaussian events amount to; inf with any other event."""
    parts = [
        math.sqrt(count) / base.noise_multiplier if isinstance(base, GaussianEvent) else math.inf
        for base, count in steps
    ]
    # Rounded up, so that no order of adding comes out below another.
    return math.hypot(*parts) * (1 + 1e-15)


@lru_cache(maxsize=4096)
def _epsilon_at_order(steps: Steps, delta: float, order: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    return rdp_epsilon_of(steps, delta=delta, order=order)
