"""Accounting beyond the known answers of tests/vectors: limits, order, refusals."""

import math

import pytest

from fl_core.errors import IncompatibleParts, PrivacyError
from fl_core.privacy.accounting import delta_of, epsilon, rdp_epsilon_at_order
from fl_core.privacy.calibration import (
    SMALLEST_MULTIPLIER,
    calibrate_noise_multiplier,
    gaussian_epsilon,
    gaussian_sigma,
)
from fl_core.privacy.events import dpsgd_event, merged, to_dp_event
from fl_core.updates.records import (
    ComposedEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonEvent,
    SelfComposedEvent,
)

DELTA = 1e-5


def steps(count, *, noise=0.8, rate=0.1):
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=count)


# SOUNDNESS.md, header and rule 15; computed there with dp-accounting outside this project.
@pytest.mark.parametrize(("count", "expected"), [(48, 7.93), (96, 10.77)])
def test_demo_series_has_the_stated_epsilon(count, expected):
    assert epsilon([steps(count)], delta=DELTA) == pytest.approx(expected, abs=0.005)


def test_rdp_of_the_demo_is_the_stated_one():
    assert epsilon([steps(48)], delta=DELTA, accountant="rdp") == pytest.approx(9.11, abs=0.005)


def test_rounds_add_up_to_the_steps_they_hold():
    rounds = [steps(8)] * 6

    assert epsilon(rounds, delta=DELTA) == epsilon([steps(48)], delta=DELTA)


def test_equal_steps_are_merged_however_they_are_written():
    step = PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=0.8))
    written = [
        step,
        SelfComposedEvent(event=ComposedEvent(events=(step, step)), count=3),
        ComposedEvent(events=()),
    ]

    assert merged(written) == [(step, 7)]


def test_drawing_every_unit_is_a_plain_gaussian_step():
    event = dpsgd_event(noise_multiplier=2.0, sampling_rate=1.0, steps=4)

    assert merged([event]) == [(GaussianEvent(noise_multiplier=2.0), 4)]


def test_four_gaussian_steps_are_one_with_half_the_noise():
    many = epsilon([steps(4, noise=2.0, rate=1.0)], delta=DELTA)

    assert many == pytest.approx(
        gaussian_epsilon(sigma=1.0, sensitivity=1.0, delta=DELTA), rel=1e-4
    )


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_one_release_without_guarantee_makes_everything_infinite(accountant):
    events = [steps(8), NonPrivateEvent()]

    assert epsilon(events, delta=DELTA, accountant=accountant) == math.inf
    assert delta_of(events, epsilon=8.0, accountant=accountant) == 1.0
    assert rdp_epsilon_at_order(events, delta=DELTA, order=3.0) == math.inf


def test_nothing_done_costs_nothing():
    assert epsilon([], delta=DELTA) == 0.0
    assert delta_of([ComposedEvent(events=())], epsilon=1.0) == 0.0
    assert rdp_epsilon_at_order([], delta=DELTA, order=3.0) == 0.0


def test_coarser_grid_never_answers_below_a_finer_one():
    fine = epsilon([steps(48)], delta=DELTA, grid=1e-4)

    assert fine <= epsilon([steps(48)], delta=DELTA, grid=1e-3) < fine * 1.001


def test_noise_near_zero_is_answered_without_filling_the_memory():
    assert epsilon([steps(1000, noise=1e-3)], delta=DELTA) > 1e6


def test_a_fixed_order_is_never_better_than_the_best_one():
    best = epsilon([steps(48)], delta=DELTA, accountant="rdp")

    fixed = {
        order: rdp_epsilon_at_order([steps(48)], delta=DELTA, order=order) for order in (2.8, 3, 8)
    }

    assert min(fixed.values()) == pytest.approx(best)
    assert fixed[2.8] < fixed[3] < fixed[8]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_outside_its_range_is_refused(delta):
    with pytest.raises(PrivacyError, match="delta"):
        epsilon([steps(1)], delta=delta)


@pytest.mark.parametrize("order", [1.0, 0.5, math.inf, math.nan])
def test_order_outside_its_range_is_refused(order):
    with pytest.raises(PrivacyError, match="order"):
        rdp_epsilon_at_order([steps(1)], delta=DELTA, order=order)


@pytest.mark.parametrize("target", [-1.0, math.nan])
def test_negative_epsilon_is_refused(target):
    with pytest.raises(PrivacyError, match="epsilon"):
        delta_of([steps(1)], epsilon=target)


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
    event = ComposedEvent(events=(SelfComposedEvent(event=step, count=3), NonPrivateEvent()))

    assert to_dp_event(event) == dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(2.0)), 3),
            dp.NonPrivateDpEvent(),
        ]
    )


# SOUNDNESS.md, rule 24 gives .796 for epsilon 8 at rate .1, 48 steps.
def test_demo_noise_is_calibrated():
    noise = calibrate_noise_multiplier(epsilon=8.0, delta=DELTA, sampling_rate=0.1, steps=48)

    assert noise == pytest.approx(0.796, rel=2e-3)


def test_calibration_stops_at_a_smallest_noise():
    noise = calibrate_noise_multiplier(
        epsilon=1e6, delta=DELTA, sampling_rate=0.01, steps=1, accountant="rdp"
    )

    assert noise == SMALLEST_MULTIPLIER


def test_calibration_says_when_no_noise_is_enough():
    with pytest.raises(IncompatibleParts, match="raise epsilon"):
        calibrate_noise_multiplier(epsilon=1e-9, delta=1e-12, sampling_rate=1.0, steps=10**6)


@pytest.mark.parametrize(
    "numbers",
    [{"epsilon": 0.0}, {"epsilon": math.inf}, {"steps": 0}, {"sampling_rate": 0.0}, {"delta": 1.0}],
    ids=str,
)
def test_calibration_refuses_impossible_numbers(numbers):
    possible = {"epsilon": 8.0, "delta": DELTA, "sampling_rate": 0.1, "steps": 48}

    with pytest.raises(PrivacyError):
        calibrate_noise_multiplier(**(possible | numbers))


@pytest.mark.parametrize("target", [0.05, 0.5, 3.0, 30.0])
def test_gaussian_sigma_and_epsilon_are_inverse(target):
    sigma = gaussian_sigma(epsilon=target, delta=DELTA, sensitivity=2.5)

    assert gaussian_epsilon(sigma=sigma, sensitivity=2.5, delta=DELTA) == pytest.approx(target)


def test_gaussian_without_noise_is_infinite_and_with_plenty_is_zero():
    assert gaussian_epsilon(sigma=0.0, sensitivity=1.0, delta=DELTA) == math.inf
    assert gaussian_epsilon(sigma=1e6, sensitivity=1.0, delta=DELTA) == 0.0


@pytest.mark.parametrize(
    "numbers", [{"sigma": -1.0}, {"sensitivity": 0.0}, {"delta": 0.0}], ids=str
)
def test_gaussian_epsilon_refuses_impossible_numbers(numbers):
    with pytest.raises(PrivacyError):
        gaussian_epsilon(**({"sigma": 1.0, "sensitivity": 1.0, "delta": DELTA} | numbers))
