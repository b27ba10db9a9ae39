"""From events to (epsilon, delta), by dp_accounting and, without sampling, by the exact curve.

Three accountants. PLD composes privacy loss distributions numerically and is tight; it gives the
recorded number. RDP composes Renyi divergences and is looser; at one order fixed beforehand it
stays valid when events are chosen in view of earlier results, which PLD does not (SOUNDNESS 15).
GDP is exact and valid in that sense too, for Gaussian events that draw everybody and for no other.
All answer with upper bounds. The grid of PLD rounds up: a coarser one is faster and never below.
Results are cached in the process, so that a live display costs one composition per new count.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from fl_core.errors import PrivacyError
from fl_core.privacy.events import BaseEvent, merged, to_dp_event
from fl_core.privacy.gaussian_curve import epsilon_of_mu, gaussian_delta
from fl_core.updates.records import (
    EventRecord,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    WithoutReplacementEvent,
)

Accountant = Literal["pld", "rdp", "gdp"]
Adjacency = Literal["add_remove", "replace_one"]
Steps = tuple[tuple[BaseEvent, int], ...]

# Shape of the number of tuning runs.
POISSON = math.inf

RECORD_GRID = 1e-4
LIVE_GRID = 1e-3
# Rounding up adds up over steps: beyond this many the recorded grid is refined tenfold
# (z 1, q 1e-4, a million steps: 0.561 at 1e-4, 0.533 at 1e-5, true value at most 0.543).
_REFINE_ABOVE_STEPS = 100_000
# A distribution of more points takes minutes and gigabytes; noise near zero would ask for it.
_MAX_POINTS = 3e6
_TAIL = 1e-15
# Events come from other machines too; a larger count is no training, and leaves the numbers.
_MOST_STEPS = 10**15
# Enough to know the spread of the loss to a few percent, at a tenth of the default orders' cost.
_SPREAD_ORDERS = (1.2, 1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 33.0, 65.0)


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
    if not 0 < grid < math.inf:
        raise PrivacyError(f"grid is {grid}, it must be above 0 and finite")
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


def delta_of(
    events: Sequence[EventRecord], *, epsilon: float, accountant: Accountant = "pld"
) -> float:
    """Return the delta of all events together at ``epsilon`` >= 0; 1 after a step without noise.

    Raises:
        PrivacyError: ``epsilon`` negative or not a number, or an event that cannot be accounted
            for under add/remove.
    """
    if isinstance(epsilon, bool) or not epsilon >= 0:
        raise PrivacyError(f"epsilon is {epsilon}, it must be 0 or more")
    return _delta(_steps(events, accountant, "add_remove"), epsilon, accountant)


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


def _steps(events: Sequence[EventRecord], accountant: Accountant, adjacency: Adjacency) -> Steps:
    steps = tuple(merged(events))
    for base, count in steps:
        if count > _MOST_STEPS:
            raise PrivacyError(
                f"{count} equal steps are more than {_MOST_STEPS:g}; check the event"
            )
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
            return float(_rdp(steps, None).get_epsilon(delta))
        case "pld":
            return float(_pld(steps, grid).get_epsilon_for_delta(delta))


@lru_cache(maxsize=4096)
def _delta(steps: Steps, epsilon: float, accountant: Accountant) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return 1.0
    match accountant:
        case "gdp":
            mu = _mu(steps)
            return 1.0 if mu == math.inf else min(1.0, gaussian_delta(mu, epsilon))
        case "rdp":
            return float(_rdp(steps, None).get_delta(epsilon))
        case "pld":
            return float(_pld(steps, RECORD_GRID).get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=256)
def _tuning_epsilon(steps: Steps, delta: float, expected_trials: float, shape: float) -> float:
    from dp_accounting import (  # noqa: PLC0415  slow import
        ComposedDpEvent,
        RepeatAndSelectDpEvent,
        SelfComposedDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  slow import

    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    _drop_order_warnings()
    run = ComposedDpEvent([SelfComposedDpEvent(to_dp_event(base), count) for base, count in steps])
    accountant = RdpAccountant()
    accountant.compose(RepeatAndSelectDpEvent(run, expected_trials, shape))
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
    return float(_rdp(steps, (order,)).get_epsilon(delta))


def _rdp(steps: Steps, orders: tuple[float, ...] | None) -> Any:
    from dp_accounting import NeighboringRelation  # noqa: PLC0415  slow import
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  slow import

    _drop_order_warnings()
    replace_one = any(isinstance(base, WithoutReplacementEvent) for base, _ in steps)
    # Gaussian events are halved already, so the relation matters to draws only.
    accountant = RdpAccountant(
        orders,
        NeighboringRelation.REPLACE_ONE if replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    for base, count in steps:
        accountant.compose(to_dp_event(base), count)
    return accountant


@lru_cache(maxsize=1)
def _drop_order_warnings() -> None:
    # dp_accounting 0.6.0 warns once per order whose series does not converge and leaves that
    # order out, which is sound; a dozen lines per call would hide what a person should see.
    logging.getLogger("absl").addFilter(
        lambda record: "_compute_log_a_frac failed to converge" not in record.getMessage()
    )


def _pld(steps: Steps, grid: float) -> Any:
    fitted = _fitted_grid(steps, grid)
    first, *others = [_composed(base, count, fitted) for base, count in steps]
    for other in others:
        first = first.compose(other)
    return first


@lru_cache(maxsize=1024)
def _fitted_grid(steps: Steps, grid: float) -> float:
    if grid >= RECORD_GRID and sum(count for _, count in steps) > _REFINE_ABOVE_STEPS:
        grid /= 10
    # The loss lies within about twice its epsilon at a vanishing delta.
    spread = 2 * float(_rdp(steps, _SPREAD_ORDERS).get_epsilon(_TAIL))
    return max(grid, spread / _MAX_POINTS)


# Few entries: one distribution may hold tens of megabytes.
@lru_cache(maxsize=24)
def _composed(base: BaseEvent, count: int, grid: float) -> Any:
    if isinstance(base, GaussianEvent):
        # n Gaussian steps are one with sqrt(n) less noise, exactly.
        return _single_step(base.noise_multiplier / math.sqrt(count), 1.0, grid)
    if not isinstance(base, PoissonEvent):
        raise PrivacyError(f"an event of kind {base.kind!r} has no loss distribution")
    step = _single_step(base.event.noise_multiplier, base.sampling_rate, grid)
    return step.self_compose(count)


@lru_cache(maxsize=24)
def _single_step(noise_multiplier: float, sampling_rate: float, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  slow import

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=grid
    )
