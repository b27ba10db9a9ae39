"""Calibrated noise never lands above its target, whatever the target and whoever accounts."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_core.privacy.accounting import epsilon
from fl_core.privacy.calibration import (
    SMALLEST_MULTIPLIER,
    calibrate_gaussian_multiplier,
    calibrate_noise_multiplier,
)
from fl_core.privacy.events import dpsgd_event, gaussian_event, repeated

CASES = {
    "target": st.floats(0.2, 20.0),
    "delta": st.floats(-12, -2).map(lambda power: 10.0**power),
    "rate": st.one_of(st.just(1.0), st.floats(1e-3, 1.0)),
    "steps": st.integers(1, 3000),
}


def _calibrated_epsilon(target, delta, rate, steps, accountant):
    noise = calibrate_noise_multiplier(
        epsilon=target, delta=delta, sampling_rate=rate, steps=steps, accountant=accountant
    )
    event = dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=steps)
    return noise, epsilon([event], delta=delta, accountant=accountant)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(**CASES)
def test_calibrated_noise_keeps_its_target_and_a_hundredth_less_does_not(
    target, delta, rate, steps
):
    noise, after = _calibrated_epsilon(target, delta, rate, steps, "rdp")
    less = dpsgd_event(noise_multiplier=noise * 0.99, sampling_rate=rate, steps=steps)

    assert after <= target
    assert noise == SMALLEST_MULTIPLIER or epsilon([less], delta=delta, accountant="rdp") > target


@settings(max_examples=3, deadline=None, derandomize=True)
@given(**CASES)
# The demo's campaign; one step of everybody.
@example(target=8.0, delta=1e-5, rate=0.1, steps=48)
@example(target=0.2, delta=1e-12, rate=1.0, steps=1)
def test_calibrated_noise_keeps_its_target_by_pld(target, delta, rate, steps):
    _, after = _calibrated_epsilon(target, delta, rate, steps, "pld")

    assert after <= target


# The site charges its campaign round by round: the same events in another grouping.
@settings(max_examples=4, deadline=None, derandomize=True)
@given(target=CASES["target"], delta=CASES["delta"], local=st.integers(1, 20), n=st.integers(1, 50))
def test_rounds_charged_one_by_one_end_under_the_calibrated_target(target, delta, local, n):
    noise = calibrate_noise_multiplier(
        epsilon=target, delta=delta, sampling_rate=0.05, steps=local * n, accountant="rdp"
    )
    one = dpsgd_event(noise_multiplier=noise, sampling_rate=0.05, steps=local)

    assert epsilon([one] * n, delta=delta, accountant="rdp") <= target


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    target=st.floats(-3, 2).map(lambda power: 10.0**power),
    delta=CASES["delta"],
    rounds=st.integers(1, 10_000),
)
def test_rounds_of_everybody_keep_their_target_and_a_thousandth_less_noise_does_not(
    target, delta, rounds
):
    noise = calibrate_gaussian_multiplier(epsilon=target, delta=delta, rounds=rounds)
    one = gaussian_event(noise_multiplier=noise, rounds=1)
    less = gaussian_event(noise_multiplier=noise * 0.999, rounds=rounds)

    assert epsilon([one] * min(rounds, 50), delta=delta, accountant="gdp") <= target
    assert epsilon([repeated(one, rounds)], delta=delta, accountant="gdp") <= target
    assert math.isclose(noise, SMALLEST_MULTIPLIER) or (
        epsilon([less], delta=delta, accountant="gdp") > target
    )
