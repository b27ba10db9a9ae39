"""Privacy events: our closed list, and its one translation into dp_accounting's.

Events arrive on manifests from other machines and lie in ledgers for years. They are matched case
by case and never looked up by a name found in the data. Ledgers hold the events; epsilon is always
derived from them, so equal steps of many rounds are added up first and composed once.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fl_core.errors import PrivacyError
from fl_core.updates.records import (
    ComposedEvent,
    EventRecord,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    SelfComposedEvent,
)

if TYPE_CHECKING:
    from dp_accounting import DpEvent

BaseEvent = GaussianEvent | PoissonEvent | NonPrivateEvent


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
    _require_number("noise_multiplier", noise_multiplier, low=0.0, high=math.inf)
    _require_number("sampling_rate", sampling_rate, low=0.0, high=1.0)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PrivacyError(f"steps is {steps!r}, it must be a whole number of 0 or more")
    if steps == 0 or sampling_rate == 0:
        return ComposedEvent(events=())
    try:
        gaussian = GaussianEvent(noise_multiplier=noise_multiplier)
    except ValidationError as error:
        raise PrivacyError(f"noise_multiplier is {noise_multiplier}, it must be finite") from error
    step = PoissonEvent(sampling_rate=sampling_rate, event=gaussian)
    return SelfComposedEvent(event=step, count=steps)


def _require_number(name: str, value: float, *, low: float, high: float) -> None:
    # NaN compares false with everything, so it fails here too.
    if not low <= value <= high:
        raise PrivacyError(f"{name} is {value}, it must lie between {low:g} and {high:g}")


def to_dp_event(event: EventRecord) -> "DpEvent":
    """Return dp_accounting's event for one of ours."""
    import dp_accounting as dp  # noqa: PLC0415  takes a second, and policies are read without it

    match event:
        case GaussianEvent():
            return dp.GaussianDpEvent(event.noise_multiplier)
        case PoissonEvent():
            return dp.PoissonSampledDpEvent(event.sampling_rate, to_dp_event(event.event))
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
