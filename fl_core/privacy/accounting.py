"""From events to (epsilon, delta), by dp_accounting; no other module calls its accountants.

Two accountants. PLD composes privacy loss distributions numerically and is tight; it gives the
recorded number. RDP composes Renyi divergences and is looser; at one order fixed beforehand it
stays valid when events are chosen in view of earlier results, which PLD does not (SOUNDNESS 15).
Both answer with upper bounds. The grid of PLD rounds up: a coarser one is faster and never below.
Results are cached in the process, so that a live display costs one composition per new count.
"""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from fl_core.errors import PrivacyError
from fl_core.privacy.events import BaseEvent, merged, to_dp_event
from fl_core.updates.records import EventRecord, GaussianEvent, NonPrivateEvent, PoissonEvent

Accountant = Literal["pld", "rdp"]
Steps = tuple[tuple[BaseEvent, int], ...]

RECORD_GRID = 1e-4
LIVE_GRID = 1e-3
# Rounding up adds up over steps: beyond this many the recorded grid is refined tenfold
# (z 1, q 1e-4, a million steps: 0.561 at 1e-4, 0.533 at 1e-5, true value at most 0.543).
_REFINE_ABOVE_STEPS = 100_000
# A distribution of more points takes minutes and gigabytes; noise near zero would ask for it.
_MAX_POINTS = 3e6
_TAIL = 1e-15


def epsilon(
    events: Sequence[EventRecord],
    *,
    delta: float,
    accountant: Accountant = "pld",
    grid: float = RECORD_GRID,
) -> float:
    """Return the epsilon of all events together, for one unit under add/remove.

    Args:
        events: Everything that touched the unit's data, in any order.
        delta: In (0, 1), fixed before training.
        accountant: ``pld``, or ``rdp`` over dp_accounting's default orders.
        grid: Value grid of PLD; coarser is faster and answers higher, never lower.

    Returns:
        An upper bound; 0 without events, inf after a step without noise.

    Raises:
        PrivacyError: ``delta`` outside (0, 1).
    """
    _require_delta(delta)
    return _epsilon(tuple(merged(events)), delta, accountant, grid)


def delta_of(
    events: Sequence[EventRecord], *, epsilon: float, accountant: Accountant = "pld"
) -> float:
    """Return the delta of all events together at ``epsilon`` >= 0; 1 after a step without noise.

    Raises:
        PrivacyError: ``epsilon`` negative or not a number.
    """
    if not epsilon >= 0:
        raise PrivacyError(f"epsilon is {epsilon}, it must be 0 or more")
    return _delta(tuple(merged(events)), epsilon, accountant)


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
    return _epsilon_at_order(tuple(merged(events)), delta, float(order))


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, it must lie between 0 and 1, both excluded")


def _is_unbounded(steps: Steps) -> bool:
    return any(
        isinstance(base, NonPrivateEvent) or _noise_multiplier(base) == 0 for base, _ in steps
    )


def _noise_multiplier(base: GaussianEvent | PoissonEvent) -> float:
    return base.noise_multiplier if isinstance(base, GaussianEvent) else base.event.noise_multiplier


@lru_cache(maxsize=4096)
def _epsilon(steps: Steps, delta: float, accountant: Accountant, grid: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    if accountant == "rdp":
        return float(_rdp(steps, None).get_epsilon(delta))
    return float(_pld(steps, grid).get_epsilon_for_delta(delta))


@lru_cache(maxsize=4096)
def _delta(steps: Steps, epsilon: float, accountant: Accountant) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return 1.0
    if accountant == "rdp":
        return float(_rdp(steps, None).get_delta(epsilon))
    return float(_pld(steps, RECORD_GRID).get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=4096)
def _epsilon_at_order(steps: Steps, delta: float, order: float) -> float:
    if not steps:
        return 0.0
    if _is_unbounded(steps):
        return math.inf
    return float(_rdp(steps, (order,)).get_epsilon(delta))


def _rdp(steps: Steps, orders: tuple[float, ...] | None) -> Any:
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  slow import

    _drop_order_warnings()
    accountant = RdpAccountant(orders)
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
    spread = 2 * float(_rdp(steps, None).get_epsilon(_TAIL))
    return max(grid, spread / _MAX_POINTS)


# Few entries: one distribution may hold tens of megabytes.
@lru_cache(maxsize=24)
def _composed(base: BaseEvent, count: int, grid: float) -> Any:
    if isinstance(base, GaussianEvent):
        # n Gaussian steps are one with sqrt(n) less noise, exactly.
        return _single_step(base.noise_multiplier / math.sqrt(count), 1.0, grid)
    if isinstance(base, NonPrivateEvent):
        raise PrivacyError("an event without privacy has no loss distribution")
    step = _single_step(base.event.noise_multiplier, base.sampling_rate, grid)
    return step.self_compose(count)


@lru_cache(maxsize=24)
def _single_step(noise_multiplier: float, sampling_rate: float, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  slow import

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=grid
    )
