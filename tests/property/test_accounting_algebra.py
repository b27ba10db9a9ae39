"""Epsilon depends on what was done and on nothing else, and more of anything never costs less."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.privacy.accounting import LIVE_GRID, epsilon, rdp_epsilon_at_order
from fl_core.privacy.events import added_up, dpsgd_event, gaussian_event, merged
from fl_core.updates.records import ComposedEvent, SelfComposedEvent

DELTA = 1e-5
NOISE, RATES = st.sampled_from([0.7, 1.0, 1.5, 3.0]), st.sampled_from([0.0, 0.01, 0.1, 1.0])
ROUND = st.builds(
    dpsgd_event, noise_multiplier=NOISE, sampling_rate=RATES, steps=st.integers(0, 40)
)
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def by(accountant, events):
    if accountant == "order":
        return rdp_epsilon_at_order(events, delta=DELTA, order=3.0)
    return epsilon(events, delta=DELTA, accountant=accountant, grid=LIVE_GRID)


def written_otherwise(events, rng):
    """The same events, in another order, nested and split at random."""
    left = list(events)
    rng.shuffle(left)
    halves = [left[::2], left[1::2]]
    nested = [ComposedEvent(events=tuple(half)) for half in halves]
    split = []
    for base, count in merged(nested):
        cut = rng.randint(0, count)
        split += [
            SelfComposedEvent(event=base, count=part) for part in (cut, count - cut) if part > 0
        ]
    rng.shuffle(split)
    return split


@QUICK
@given(events=st.lists(ROUND, max_size=6), rng=st.randoms(use_true_random=False))
def test_order_nesting_and_splitting_change_nothing(events, rng):
    otherwise = written_otherwise(events, rng)

    assert merged(otherwise) == merged(events)
    for accountant in ("rdp", "gdp", "order"):
        assert by(accountant, otherwise) == by(accountant, events)
        assert by(accountant, added_up(events)) == by(accountant, events)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(events=st.lists(ROUND, min_size=1, max_size=4), rng=st.randoms(use_true_random=False))
def test_order_nesting_and_splitting_change_nothing_by_pld(events, rng):
    assert by("pld", written_otherwise(events, rng)) == by("pld", events)


@pytest.mark.parametrize("accountant", ["rdp", "order"])
@QUICK
@given(
    noise=st.floats(0.5, 5.0),
    rate=st.floats(1e-3, 0.9),
    steps=st.integers(1, 500),
    more=st.floats(1.0, 1.5),
)
def test_more_steps_higher_rates_and_less_noise_never_cost_less(
    accountant, noise, rate, steps, more
):
    def spent(z, q, n):
        event = dpsgd_event(noise_multiplier=z, sampling_rate=q, steps=n)
        # Series of an order between whole ones may fail to converge, which leaves it out.
        return by(accountant, [event])

    one = spent(noise, rate, steps)

    assert spent(noise, rate, steps + 1) >= one * (1 - 1e-12)
    assert spent(noise, min(rate * more, 1.0), steps) >= one * (1 - 1e-3)
    assert spent(noise * more, rate, steps) <= one * (1 + 1e-3)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    noise=st.floats(0.6, 4.0),
    rate=st.floats(1e-2, 0.9),
    steps=st.integers(1, 300),
)
def test_more_of_anything_never_costs_less_by_pld(noise, rate, steps):
    def spent(z, q, n):
        return by("pld", [dpsgd_event(noise_multiplier=z, sampling_rate=q, steps=n)])

    one = spent(noise, rate, steps)

    # The grid rounds every step up, by less than a thousandth of what is compared.
    assert spent(noise, rate, steps + 5) >= one * (1 - 1e-3)
    assert spent(noise, min(rate * 1.2, 1.0), steps) >= one * (1 - 1e-3)
    assert spent(noise * 1.2, rate, steps) <= one * (1 + 1e-3)


@QUICK
@given(
    noise=st.floats(0.3, 50.0),
    rounds=st.integers(1, 1000),
    delta=st.floats(-12, -1).map(lambda power: 10.0**power),
)
def test_whole_sites_pay_more_for_more_rounds_less_noise_and_a_smaller_delta(noise, rounds, delta):
    def spent(z, n, d):
        event = gaussian_event(noise_multiplier=z, rounds=n)
        return epsilon([event], delta=d, accountant="gdp")

    one = spent(noise, rounds, delta)

    assert spent(noise, rounds + 1, delta) >= one
    assert spent(noise * 1.01, rounds, delta) <= one
    assert spent(noise, rounds, delta / 2) >= one
    # Exactly as many squares: four times the rounds at twice the noise.
    assert math.isclose(spent(2 * noise, 4 * rounds, delta), one, rel_tol=1e-9, abs_tol=1e-12)


# Rounding up of PLD must not grow beyond the looser bound: notes, "alarm if PLD > RDP".
@settings(max_examples=8, deadline=None, derandomize=True)
@given(noise=st.floats(0.6, 4.0), rate=st.floats(1e-2, 1.0), steps=st.integers(1, 2000))
def test_pld_is_never_above_rdp(noise, rate, steps):
    event = dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=steps)

    assert by("pld", [event]) <= by("rdp", [event]) * (1 + 1e-6)
