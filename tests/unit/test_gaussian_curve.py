"""The exact curve of Gaussian releases: against many digits, in both directions, at its edges."""

import math

import mpmath
import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.calibration import SMALLEST_MULTIPLIER, calibrate_gaussian_multiplier
from fl_core.privacy.gaussian_curve import (
    epsilon_of_mu,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_sigma,
)

DELTA = 1e-5


def exact_delta(mu, epsilon):
    """Balle and Wang 2018, theorem 8, with 60 digits."""
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


@pytest.mark.parametrize("mu", [1e-4, 0.01, 0.3, 1.0, 4.0, 12.0, 40.0, 70.0, 75.0, 300.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.5])
def test_delta_is_exact_and_never_rounded_down(mu, share):
    # Around mu^2 / 2 + 3 mu, where delta is between a half and 1e-12.
    epsilon = share * (mu * mu / 2 + 3 * mu)

    exact = exact_delta(mu, epsilon)
    got = gaussian_delta(mu, epsilon)

    assert got >= exact
    # Two nearly equal terms are subtracted; what is lost is relative to them.
    lost = 1e-14 * (10 + 4 * epsilon) * mpmath.ncdf(mu / 2 - epsilon / mu)
    assert got - exact <= max(lost, 1e-300)


@pytest.mark.parametrize("mu", [1e-3, 0.05, 1.0, 7.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_epsilon_is_enough_and_a_millionth_less_is_not(mu, delta):
    epsilon = epsilon_of_mu(mu, delta=delta)

    assert exact_delta(mu, epsilon) <= delta
    assert epsilon == 0 or exact_delta(mu, epsilon * (1 - 1e-6)) > delta


@pytest.mark.parametrize("target", [0.05, 0.5, 3.0, 30.0])
def test_sigma_and_epsilon_are_inverse(target):
    sigma = gaussian_sigma(epsilon=target, delta=DELTA, sensitivity=2.5)

    assert gaussian_epsilon(sigma=sigma, sensitivity=2.5, delta=DELTA) == pytest.approx(target)


def test_no_noise_is_infinite_and_plenty_is_zero():
    assert gaussian_epsilon(sigma=0.0, sensitivity=1.0, delta=DELTA) == math.inf
    assert gaussian_epsilon(sigma=1e-200, sensitivity=1.0, delta=DELTA) == math.inf
    assert gaussian_epsilon(sigma=1e6, sensitivity=1.0, delta=DELTA) == 0.0
    assert epsilon_of_mu(0.0, delta=DELTA) == 0.0
    assert epsilon_of_mu(math.inf, delta=DELTA) == math.inf


# The vector client-cross-silo-all: z 4 over 50 rounds is epsilon 8.595866 at 1e-5.
def test_calibrated_rounds_reach_the_known_multiplier():
    multiplier = calibrate_gaussian_multiplier(epsilon=8.595866, delta=DELTA, rounds=50)

    assert multiplier == pytest.approx(4.0, rel=1e-5)


def test_a_generous_target_still_gets_the_smallest_noise():
    assert calibrate_gaussian_multiplier(epsilon=1e6, delta=0.5, rounds=1) == SMALLEST_MULTIPLIER


@pytest.mark.parametrize(
    "numbers",
    [
        {"sigma": -1.0},
        {"sigma": math.nan},
        {"sigma": True},
        {"sensitivity": 0.0},
        {"sensitivity": math.inf},
        {"delta": 0.0},
        {"delta": math.nan},
    ],
    ids=str,
)
def test_impossible_releases_are_refused(numbers):
    with pytest.raises(PrivacyError, match=next(iter(numbers))):
        gaussian_epsilon(**({"sigma": 1.0, "sensitivity": 1.0, "delta": DELTA} | numbers))


@pytest.mark.parametrize(
    "numbers",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": True},
        {"rounds": 0},
        {"rounds": 1.5},
        {"rounds": True},
        {"delta": 1.0},
    ],
    ids=str,
)
def test_impossible_targets_are_refused(numbers):
    with pytest.raises(PrivacyError, match=next(iter(numbers))):
        calibrate_gaussian_multiplier(**({"epsilon": 8.0, "delta": DELTA, "rounds": 5} | numbers))
