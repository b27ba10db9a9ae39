"""Calibrated noise never lands above its target, whatever the target."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.privacy.accounting import epsilon
from fl_core.privacy.calibration import SMALLEST_MULTIPLIER, calibrate_noise_multiplier
from fl_core.privacy.events import dpsgd_event

CASES = {
    "target": st.floats(0.2, 20.0),
    "delta": st.floats(-12, -2).map(lambda power: 10.0**power),
    "rate": st.floats(1e-3, 1.0),
    "steps": st.integers(1, 3000),
}


def _calibrated_epsilon(target, delta, rate, steps, accountant):
    noise = calibrate_noise_multiplier(
        epsilon=target, delta=delta, sampling_rate=rate, steps=steps, accountant=accountant
    )
    event = dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=steps)
    return noise, epsilon([event], delta=delta, accountant=accountant)


@settings(max_examples=10, deadline=None, derandomize=True)
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
def test_calibrated_noise_keeps_its_target_by_pld(target, delta, rate, steps):
    _, after = _calibrated_epsilon(target, delta, rate, steps, "pld")

    assert after <= target
