"""Privacy events: our closed list, and its one translation into dp_accounting's.

Events arrive on manifests from other machines and lie in ledgers for years. They are matched case
by case and never looked up by a name found in the data. Ledgers hold the events; epsilon is always
derived from them, so equal steps of many rounds are added up first and composed once.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fl_core.errors import PrivacyError
from fl_core.updates.records import (
    ComposedEvent,
    EventRecord,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    SelfComposedEvent,
    WithoutReplacementEvent,
)

if TYPE_CHECKING:
    from dp_accounting import DpEvent

BaseEvent = GaussianEvent | PoissonEvent | WithoutReplacementEvent | NonPrivateEvent
NOTHING = ComposedEvent(events=())


def dpsgd_event(*, noise_multiplier: float, sampling_rate: float, steps: int) -> EventRecord:
    """Return the event of ``steps`` steps of DP-SGD with Poisson batches.

    Args:
        noise_multiplier: Noise stddev / clip_norm of the summed gradients, >= 0; 0 is no privacy.
        sampling_rate: Poisson probability of a unit per step, in [0, 1].
        steps: Whole number >= 0; none, or a rate of 0, touches no data and is an empty event.

    Raises:
        PrivacyError: A number outside its range, or not a number.

    Source: Abadi et al. 2016, Algorithm 1.
    """
    gaussian = _gaussian(noise_multiplier)
    _require_number("sampling_rate", sampling_rate, low=0.0, high=1.0)
    if sampling_rate == 0:
        _require_whole("steps", steps, low=0)
        return NOTHING
    step = PoissonEvent(sampling_rate=sampling_rate, event=gaussian)
    return repeated(step, steps, named="steps")


def gaussian_event(*, noise_multiplier: float, rounds: int) -> EventRecord:
    """Return the event of ``rounds`` Gaussian releases that all draw everybody.

    Args:
        noise_multiplier: Noise stddev / L2 sensitivity, >= 0; 0 is no privacy.
        rounds: Whole number >= 0.

    Raises:
        PrivacyError: A number outside its range, or not a number.
    """
    return repeated(_gaussian(noise_multiplier), rounds, named="rounds")


def without_replacement_event(
    *, noise_multiplier: float, sample_size: int, population: int, rounds: int
) -> EventRecord:
    """Return the event of rounds that draw a fixed number of units without replacement.

    Accounted under replace-one only, and by RDP only.

    Args:
        noise_multiplier: Noise stddev / L2 distance by which a *replaced* unit moves the sum of a
            draw: ``2 C`` for vectors clipped to C.
        sample_size: Units per round, at least 1 and at most ``population``.
        population: All units; public under replace-one.
        rounds: Whole number >= 0.

    Raises:
        PrivacyError: A number outside its range, or not a number.

    Source: Wang, Balle and Kasiviswanathan 2019, theorem 27 of the long version.
    """
    gaussian = _gaussian(noise_multiplier)
    _require_whole("population", population, low=1)
    _require_whole("sample_size", sample_size, low=1)
    if sample_size > population:
        raise PrivacyError(f"sample_size is {sample_size}, of a population of {population} only")
    draw = WithoutReplacementEvent(sample_size=sample_size, population=population, event=gaussian)
    return repeated(draw, rounds, named="rounds")


def repeated(event: EventRecord, times: int, *, named: str = "times") -> EventRecord:
    """Return ``event`` so many times; 0 times touches no data.

    Raises:
        PrivacyError: ``times`` is no whole number of 0 or more; the text calls it ``named``.
    """
    _require_whole(named, times, low=0)
    return NOTHING if times == 0 else SelfComposedEvent(event=event, count=times)


def sampling_rate_of(*, expected: float, population: int) -> float:
    """Return the Poisson probability that draws ``expected`` of ``population`` units on average.

    For analysis, and for populations that are public. The product never derives a rate from the
    rows of a site: their number would show in it (SOUNDNESS, rule 5).

    Raises:
        PrivacyError: ``population`` under 1, or ``expected`` negative or above it.
    """
    _require_whole("population", population, low=1)
    _require_number("expected", expected, low=0.0, high=float(population))
    return expected / population


def _gaussian(noise_multiplier: float) -> GaussianEvent:
    _require_number("noise_multiplier", noise_multiplier, low=0.0, high=math.inf)
    if noise_multiplier == math.inf:
        raise PrivacyError("noise_multiplier is inf, it must be finite")
    return GaussianEvent(noise_multiplier=noise_multiplier)


def _require_number(name: str, value: float, *, low: float, high: float) -> None:
    # Numbers come from files too, where true and "1" are no rates. NaN compares false below.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise PrivacyError(f"{name} is {value!r}, it must be a number from {low:g} to {high:g}")


def _require_whole(name: str, value: int, *, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise PrivacyError(f"{name} is {value!r}, it must be a whole number of {low} or more")


def to_dp_event(event: EventRecord) -> "DpEvent":
    """Return dp_accounting's event for one of ours."""
    import dp_accounting as dp  # noqa: PLC0415  takes a second, and policies are read without it

    match event:
        case GaussianEvent():
            return dp.GaussianDpEvent(event.noise_multiplier)
        case PoissonEvent():
            return dp.PoissonSampledDpEvent(event.sampling_rate, to_dp_event(event.event))
        case WithoutReplacementEvent():
            return dp.SampledWithoutReplacementDpEvent(
                event.population, event.sample_size, to_dp_event(event.event)
            )
        case SelfComposedEvent():
            return dp.SelfComposedDpEvent(to_dp_event(event.event), event.count)
        case ComposedEvent():
            return dp.ComposedDpEvent([to_dp_event(part) for part in event.events])
        case NonPrivateEvent():
            return dp.NonPrivateDpEvent()


def merged(events: Sequence[EventRecord]) -> list[tuple[BaseEvent, int]]:
    """Return the distinct single steps of all events with how often each happened.

    The order of events has no influence on epsilon, so equal steps of a thousand rounds cost one
    composition. Steps that draw every unit (rate 1) are plain Gaussian steps.
    """
    counts: dict[BaseEvent, int] = {}
    for event in events:
        for base, count in _steps(event, 1):
            counts[base] = counts.get(base, 0) + count
    return sorted(counts.items(), key=lambda item: item[0].model_dump_json())


def added_up(events: Sequence[EventRecord]) -> list[EventRecord]:
    """Return the same charges with equal steps added up, in a fixed order."""
    return [
        base if count == 1 else SelfComposedEvent(event=base, count=count)
        for base, count in merged(events)
    ]


def _steps(event: EventRecord, count: int) -> list[tuple[BaseEvent, int]]:
    match event:
        case SelfComposedEvent():
            return _steps(event.event, count * event.count)
        case ComposedEvent():
            return [step for part in event.events for step in _steps(part, count)]
        case PoissonEvent() if event.sampling_rate == 1:
            return [(event.event, count)]
        case _:
            return [(event, count)]
