"""The noise stream: distribution, independence, and what it refuses.

False alarms: every statistical bound below is passed by a right stream with probability
1 - 1e-6 or more; seeded streams make each run the same.
"""

import copy
import math
import os
from statistics import NormalDist

import numpy as np
import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.randomness import SecureStream, SeededStream, normals_from

N = 200_000
# Two-sided quantile of a standard normal at a false alarm rate of 1e-6.
Z = NormalDist().inv_cdf(1 - 0.5e-6)


@pytest.fixture
def draws():
    return SeededStream(1).normal((N,)).astype(np.float64)


def test_moments_are_those_of_a_standard_normal(draws):
    expected = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}

    for power, (mean, variance) in expected.items():
        error = abs(np.mean(draws**power) - mean)
        assert error < Z * math.sqrt(variance / N), power


def test_distribution_is_that_of_a_standard_normal(draws):
    at = np.linspace(-3.5, 3.5, 29)
    share = np.searchsorted(np.sort(draws), at) / N

    expected = np.array([NormalDist().cdf(x) for x in at])

    # Dvoretzky-Kiefer-Wolfowitz inequality at 1e-6.
    assert np.max(np.abs(share - expected)) < math.sqrt(math.log(2 / 1e-6) / (2 * N))


@pytest.mark.parametrize("lag", [1, 2, N // 2])
def test_draws_do_not_depend_on_each_other(draws, lag):
    product = draws[:-lag] * draws[lag:]

    assert abs(product.mean()) < Z / math.sqrt(len(product))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_coins_fall_at_their_rate(rate):
    heads = SeededStream(2).coins(N, rate).sum()

    assert abs(heads - N * rate) < Z * math.sqrt(N * rate * (1 - rate))


def test_coins_at_the_ends_are_certain():
    stream = SecureStream()

    assert not stream.coins(1000, 0.0).any()
    assert stream.coins(1000, 1.0).all()


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_rate_outside_its_range_is_refused(rate):
    with pytest.raises(PrivacyError, match="rate"):
        SecureStream().coins(1, rate)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0,), (7, 1, 3)], ids=str)
def test_normals_have_the_asked_shape_and_type(shape):
    noise = SecureStream().normal(shape)

    assert noise.shape == shape
    assert noise.dtype == np.float32


def test_large_draws_are_whole():
    noise = SecureStream().normal((300_001,))

    assert np.isfinite(noise).all()
    assert len(np.unique(noise[-1000:])) > 990


# Extreme words: u = 2^-129 gives sqrt(2 * 129 * ln 2) = 13.37, u = 1 gives 0.
def test_smallest_and_largest_words_give_finite_normals():
    top = np.uint64(2**64 - 1)
    words = np.array([0, top, 0, top, 0, 0], dtype=np.uint64)

    noise = normals_from(words)

    assert noise[0] == pytest.approx(math.sqrt(2 * 129 * math.log(2)), rel=1e-6)
    assert np.isfinite(noise).all()
    assert noise[1] == 0


def test_two_secure_streams_differ_and_a_stream_never_repeats():
    one, other = SecureStream(), SecureStream()

    first, second = one.normal((1000,)), one.normal((1000,))

    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.normal((1000,)))


def test_seeded_streams_repeat_and_say_that_they_are_not_private():
    same = SeededStream(7).normal((100,))

    assert np.array_equal(same, SeededStream(7).normal((100,)))
    assert not np.array_equal(same, SeededStream(8).normal((100,)))
    assert SecureStream.is_private
    assert not SeededStream.is_private


@pytest.mark.parametrize(
    "copying",
    [copy.copy, copy.deepcopy, lambda s: s.__reduce_ex__(4)],
    ids=["copy", "deepcopy", "any serialiser"],
)
def test_stream_cannot_be_copied_or_stored(copying):
    with pytest.raises(TypeError, match="cannot be copied or stored"):
        copying(SecureStream())


def test_stream_shows_nothing_and_holds_no_key():
    stream = SecureStream()

    assert repr(stream) == "SecureStream()"
    assert not hasattr(stream, "__dict__")
    held = [getattr(stream, name) for name in ("_cipher", "_process")]
    assert not any(isinstance(value, bytes) for value in held)


def test_stream_carried_over_a_fork_is_refused(monkeypatch):
    stream = SecureStream()
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(PrivacyError, match="another process"):
        stream.normal((1,))
