"""The calls of dp_accounting's accountants: steps in, its objects out. Nothing else calls them.

What is slow is cached in the process: one distribution per (event, number of steps, grid). So a
thousand equal rounds cost one composition, whose time does not depend on how many there were.
"""

import logging
import math
from functools import lru_cache
from typing import Any

from fl_core.errors import PrivacyError
from fl_core.privacy.events import BaseEvent, to_dp_event
from fl_core.updates.records import GaussianEvent, PoissonEvent, WithoutReplacementEvent

Steps = tuple[tuple[BaseEvent, int], ...]

RECORD_GRID = 1e-4
# Rounding up adds up over steps: beyond this many the recorded grid is refined tenfold
# (z 1, q 1e-4, a million steps: 0.561 at 1e-4, 0.533 at 1e-5, true value at most 0.543).
_REFINE_ABOVE_STEPS = 100_000
# A distribution of more points takes minutes and gigabytes; noise near zero would ask for it.
_MAX_POINTS = 3e6
_TAIL = 1e-15
# Enough to know the spread of the loss to a few percent; each order is worked out once per step.
_SPREAD_ORDERS = (1.2, 1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 33.0, 65.0)


def rdp_of(steps: Steps, *, orders: tuple[float, ...] | None = None) -> Any:
    """Return dp_accounting's accountant after all steps; None is its default orders."""
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


def rdp_epsilon_of(steps: Steps, *, delta: float, order: float) -> float:
    """Return the epsilon at ``delta`` of the steps' divergences at one order, added up."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon  # noqa: PLC0415  slow

    # Rounding makes tiny divergences negative, and a charge would then give budget back.
    divergence = math.fsum(count * max(0.0, _divergence(base, order)) for base, count in steps)
    return float(compute_epsilon([order], [divergence], delta)[0])


def _divergence(base: BaseEvent, order: float) -> float:
    """Return an upper bound of one step's Renyi divergence at ``order``.

    dp_accounting 0.6.0 adds up a series between whole orders that is loose, and often without an
    end, below order 2. ``(order - 1) x divergence`` is convex in the order, so the line between
    the two whole orders is a bound as well; the smaller one is taken.

    Source: van Erven and Harremoes 2014, corollary 2, for the convexity.
    """
    low, high = math.floor(order), math.ceil(order)
    of_library = _library_divergence(base, order)
    if low == high:
        return of_library
    # At order 1 the product is 0, whatever the divergence.
    below = (low - 1) * _library_divergence(base, float(low)) if low > 1 else 0.0
    above = (high - 1) * _library_divergence(base, float(high))
    on_the_line = ((high - order) * below + (order - low) * above) / (order - 1)
    return min(of_library, on_the_line)


@lru_cache(maxsize=4096)
def _library_divergence(base: BaseEvent, order: float) -> float:
    accountant = rdp_of(((base, 1),), orders=(order,))
    # The library hands out converted epsilons only; its version is pinned.
    return float(accountant._rdp[0])  # noqa: SLF001


def rdp_of_best(steps: Steps, *, expected_trials: float, shape: float) -> Any:
    """Return its accountant after releasing the best of a random number of runs of all steps."""
    from dp_accounting import dp_event as dp  # noqa: PLC0415  slow import
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  slow import

    _drop_order_warnings()
    run = dp.ComposedDpEvent(
        [dp.SelfComposedDpEvent(to_dp_event(base), count) for base, count in steps]
    )
    accountant = RdpAccountant()
    accountant.compose(dp.RepeatAndSelectDpEvent(run, expected_trials, shape))
    return accountant


@lru_cache(maxsize=1)
def _drop_order_warnings() -> None:
    # dp_accounting 0.6.0 warns once per order whose series does not converge and leaves that
    # order out, which is sound; a dozen lines per call would hide what a person should see.
    logging.getLogger("absl").addFilter(
        lambda record: "_compute_log_a_frac failed to converge" not in record.getMessage()
    )


def pld_of(steps: Steps, *, grid: float) -> Any:
    """Return dp_accounting's privacy loss distribution of all steps, at least one."""
    fitted = _fitted_grid(steps, grid)
    first, *others = [_composed(base, count, fitted) for base, count in steps]
    for other in others:
        first = first.compose(other)
    return first


def pld_points(steps: Steps, *, grid: float) -> float:
    """Return about how many points ``pld_of`` works on, which is what it costs.

    A single step's loss lies within that of a draw eight deviations out; all steps' together
    within the spread that the grid is fitted to.
    """
    fitted = _fitted_grid(steps, grid)
    noises = [base.event if isinstance(base, PoissonEvent) else base for base, _ in steps]
    single = [
        8 / noise.noise_multiplier + 0.5 / noise.noise_multiplier**2
        for noise in noises
        if isinstance(noise, GaussianEvent)
    ]
    return (math.fsum(single) + len(steps) * _spread(steps)) / fitted


@lru_cache(maxsize=1024)
def _fitted_grid(steps: Steps, grid: float) -> float:
    if grid >= RECORD_GRID and sum(count for _, count in steps) > _REFINE_ABOVE_STEPS:
        grid /= 10
    return max(grid, _spread(steps) / _MAX_POINTS)


@lru_cache(maxsize=1024)
def _spread(steps: Steps) -> float:
    # The loss lies within about twice its epsilon at a vanishing delta.
    return 2 * min(rdp_epsilon_of(steps, delta=_TAIL, order=order) for order in _SPREAD_ORDERS)


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
