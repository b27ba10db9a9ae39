"""Noise for an epsilon: the demo's, the ends of the search, refusals."""

import math

import pytest

from fl_core.errors import IncompatibleParts, PrivacyError
from fl_core.privacy.calibration import SMALLEST_MULTIPLIER, calibrate_noise_multiplier

DELTA = 1e-5


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
