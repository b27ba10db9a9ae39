"""Noise-aware weights: no other weights leave less noise beside the same signal.

A site of n rows sends its gradient sum over its public divisor B: signal n / B, noise stddev 1 / B
(both up to factors that all sites share). The weighted mean has signal ``sum w n / B`` and noise
variance ``sum (w / B)^2``.
"""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NOW, campaign_of

from fl_core.assembly import site_weights
from fl_core.campaign.roster import Roster, RosterEntry

SITES = ("a", "b", "c")
SIZES = st.tuples(*[st.integers(1, 4096)] * 3)
DIVISORS = st.tuples(*[st.floats(0.5, 500.0)] * 3)


def weights_of(kind, sizes, divisors):
    entries = tuple(
        RosterEntry(site=site, signing_key=f"{n}" * 64, since=NOW, declared_examples=size)
        for n, (site, size) in enumerate(zip(SITES, sizes, strict=True))
    )
    training = {
        "local_steps": 8,
        "learning_rate": 0.1,
        "batch_size": dict(zip(SITES, divisors, strict=True)),
    }
    found = site_weights(
        campaign_of(weights=kind, training=training), Roster(version=1, entries=entries)
    )
    return np.array([found[site] for site in SITES])


def noise_per_signal(weights, sizes, divisors):
    share = np.asarray(weights) / np.asarray(divisors)
    return math.sqrt(float((share**2).sum())) / float((share * np.asarray(sizes)).sum())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=SIZES, divisors=DIVISORS)
def test_no_weights_on_a_grid_leave_less_noise_beside_the_signal(sizes, divisors):
    ours = weights_of("noise_aware", sizes, divisors)
    # All directions of weights in steps of a tenth, relative to ours so that the grid is dense
    # where the best might be, whatever the sizes.
    grid = itertools.product(np.linspace(0.1, 2.0, 20), repeat=3)

    best = min(noise_per_signal(ours * np.array(factors), sizes, divisors) for factors in grid)

    assert noise_per_signal(ours, sizes, divisors) <= best * (1 + 1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sizes=SIZES, divisors=DIVISORS, other=st.tuples(*[st.floats(0.0, 1.0)] * 3))
def test_no_other_weights_leave_less_noise_beside_the_signal(sizes, divisors, other):
    if max(other) < 1e-6:
        other = (1.0, 1.0, 1.0)

    ours = noise_per_signal(weights_of("noise_aware", sizes, divisors), sizes, divisors)

    assert ours <= noise_per_signal(np.array(other), sizes, divisors) * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=SIZES, divisors=DIVISORS)
def test_the_least_noise_is_one_over_the_root_of_the_squared_sizes(sizes, divisors):
    ours = noise_per_signal(weights_of("noise_aware", sizes, divisors), sizes, divisors)

    # Cauchy-Schwarz, the case of equality: 1 / sqrt(sum n^2).
    assert math.isclose(ours, 1 / math.sqrt(sum(n * n for n in sizes)), rel_tol=1e-9)
