"""Events are dp_accounting's, kind by kind, and numbers that no training has make none."""

import math

import pytest
from pydantic import ValidationError

from fl_core.errors import PrivacyError
from fl_core.privacy.events import (
    dpsgd_event,
    gaussian_event,
    sampling_rate_of,
    to_dp_event,
    without_replacement_event,
)
from fl_core.updates.records import (
    ComposedEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    SelfComposedEvent,
    WithoutReplacementEvent,
)


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
    ],
)
def test_event_with_an_impossible_number_is_refused_by_name(numbers, named):
    possible = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1}

    with pytest.raises(PrivacyError, match=named):
        dpsgd_event(**(possible | numbers))


def test_every_kind_of_event_is_translated():
    import dp_accounting as dp

    step = PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=2.0))
    draw = WithoutReplacementEvent(
        sample_size=5, population=50, event=GaussianEvent(noise_multiplier=3.0)
    )
    repeats = SelfComposedEvent(event=step, count=3)
    event = ComposedEvent(events=(repeats, draw, NonPrivateEvent()))

    assert to_dp_event(event) == dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(2.0)), 3),
            dp.SampledWithoutReplacementDpEvent(50, 5, dp.GaussianDpEvent(3.0)),
            dp.NonPrivateDpEvent(),
        ]
    )


@pytest.mark.parametrize(
    ("make", "numbers", "named"),
    [
        (gaussian_event, {"noise_multiplier": -1.0, "rounds": 1}, "noise_multiplier"),
        (gaussian_event, {"noise_multiplier": True, "rounds": 1}, "noise_multiplier"),
        (gaussian_event, {"noise_multiplier": "1", "rounds": 1}, "noise_multiplier"),
        (gaussian_event, {"noise_multiplier": 1.0, "rounds": 1.5}, "rounds"),
        (gaussian_event, {"noise_multiplier": 1.0, "rounds": True}, "rounds"),
        (sampling_rate_of, {"expected": 33.0, "population": 32}, "expected"),
        (sampling_rate_of, {"expected": math.nan, "population": 32}, "expected"),
        (sampling_rate_of, {"expected": 0.0, "population": 0}, "population"),
        (
            without_replacement_event,
            {"noise_multiplier": 1.0, "sample_size": 51, "population": 50, "rounds": 1},
            "sample_size",
        ),
        (
            without_replacement_event,
            {"noise_multiplier": 1.0, "sample_size": 0, "population": 50, "rounds": 1},
            "sample_size",
        ),
        (
            without_replacement_event,
            {"noise_multiplier": math.nan, "sample_size": 1, "population": 50, "rounds": 1},
            "noise_multiplier",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_events_of_impossible_numbers_are_refused_by_name(make, numbers, named):
    with pytest.raises(PrivacyError, match=named):
        make(**numbers)


def test_draw_larger_than_its_population_cannot_be_read_from_a_document():
    draw = without_replacement_event(noise_multiplier=1.0, sample_size=5, population=50, rounds=1)
    text = draw.event.model_dump() | {"sample_size": 51}

    with pytest.raises(ValidationError, match="sample_size"):
        WithoutReplacementEvent.model_validate(text)
