"""Accounting beyond the known answers of tests/vectors: limits, order, refusals."""

import math

import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import (
    both_epsilons,
    delta_of,
    epsilon,
    rdp_epsilon_at_order,
    tuning_epsilon,
)
from fl_core.privacy.events import (
    dpsgd_event,
    gaussian_event,
    merged,
    repeated,
    without_replacement_event,
)
from fl_core.privacy.gaussian_curve import gaussian_epsilon
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


# Above epsilon 20 a policy's order is under 2, where dp_accounting's series has no end for this
# step; its divergence there is at most that at order 2.
@pytest.mark.parametrize("order", [1.1, 1.5, 1.99])
def test_an_order_under_two_is_answered_from_whole_orders(order):
    at_two = rdp_epsilon_at_order([steps(48)], delta=DELTA, order=2.0)

    found = rdp_epsilon_at_order([steps(48)], delta=DELTA, order=order)

    # The conversion at delta is worse the lower the order, by at most log(1 / delta) / (order - 1).
    assert found < at_two + math.log(1 / DELTA) / (order - 1)


# z 2, q .3 at order 1.9: 0.0283 by the series, 0.0252 at order 2, which bounds all lower ones.
def test_a_lower_order_never_has_more_divergence_than_the_next_whole_one():
    step = steps(1, noise=2.0, rate=0.3)
    low = rdp_epsilon_at_order([repeated(step, 1000)], delta=DELTA, order=1.9)
    whole = rdp_epsilon_at_order([repeated(step, 1000)], delta=DELTA, order=2.0)

    def converted(divergence, order):
        # Canonne et al. 2020, proposition 12.
        return divergence + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)

    divergence = whole - converted(0.0, 2.0)
    assert low <= converted(divergence, 1.9) + 1e-9


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


# --- Whole sites: Gaussian events without sampling.


def test_unsampled_rounds_are_one_release_of_the_summed_squares():
    events = [gaussian_event(noise_multiplier=z, rounds=n) for z, n in ((4.0, 10), (3.0, 5))]
    mu = math.sqrt(10 / 16 + 5 / 9)

    exact = epsilon(events, delta=DELTA, accountant="gdp")

    assert exact == pytest.approx(gaussian_epsilon(sigma=1 / mu, sensitivity=1.0, delta=DELTA))
    assert exact <= epsilon(events, delta=DELTA) < exact * 1.001
    assert exact < epsilon(events, delta=DELTA, accountant="rdp")
    assert delta_of(events, epsilon=exact, accountant="gdp") == pytest.approx(DELTA)


def test_unsampled_poisson_steps_count_as_gaussian_ones():
    drawn = dpsgd_event(noise_multiplier=4.0, sampling_rate=1.0, steps=10)
    all_in = gaussian_event(noise_multiplier=4.0, rounds=10)

    assert epsilon([drawn], delta=DELTA, accountant="gdp") == epsilon(
        [all_in], delta=DELTA, accountant="gdp"
    )


@pytest.mark.parametrize("other", [steps(1), NonPrivateEvent()], ids=["poisson", "non private"])
def test_the_exact_curve_bounds_nothing_else(other):
    events = [gaussian_event(noise_multiplier=4.0, rounds=10), other]

    assert epsilon(events, delta=DELTA, accountant="gdp") == math.inf
    assert delta_of(events, epsilon=100.0, accountant="gdp") == 1.0


def test_both_accountants_are_shown():
    both = both_epsilons([steps(48)], delta=DELTA)

    # SOUNDNESS.md, header.
    assert both.pld == pytest.approx(7.93, abs=0.005)
    assert both.rdp == pytest.approx(9.11, abs=0.005)


# --- Another neighbouring relation.


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_replacing_a_unit_moves_a_sum_twice_as_far(accountant):
    replaced = epsilon(
        [gaussian_event(noise_multiplier=4.0, rounds=20)],
        delta=DELTA,
        accountant=accountant,
        adjacency="replace_one",
    )

    removed = epsilon(
        [gaussian_event(noise_multiplier=2.0, rounds=20)], delta=DELTA, accountant=accountant
    )
    assert replaced == removed


# Drawing all of a population is no sampling. A draw's multiplier is stated for a replaced unit,
# a Gaussian event's for a removed one, which moves the sum half as far.
def test_drawing_the_whole_population_is_a_gaussian_release():
    drawn = without_replacement_event(
        noise_multiplier=2.0, sample_size=50, population=50, rounds=20
    )
    every = gaussian_event(noise_multiplier=4.0, rounds=20)

    by_draw, by_release = (
        epsilon([event], delta=DELTA, accountant="rdp", adjacency="replace_one")
        for event in (drawn, every)
    )

    assert by_draw == pytest.approx(by_release, rel=1e-12)


DRAW = without_replacement_event(noise_multiplier=1.0, sample_size=5, population=50, rounds=1)


@pytest.mark.parametrize(
    ("event", "accountant", "adjacency", "words"),
    [
        (DRAW, "rdp", "add_remove", "replace_one"),
        (DRAW, "pld", "replace_one", "rdp"),
        (DRAW, "gdp", "replace_one", "rdp"),
        (steps(1), "pld", "replace_one", "poisson"),
        (steps(1), "rdp", "replace_one", "poisson"),
    ],
)
def test_sampling_is_refused_under_the_other_relation(event, accountant, adjacency, words):
    with pytest.raises(PrivacyError, match=words):
        epsilon([event], delta=DELTA, accountant=accountant, adjacency=adjacency)


def test_a_draw_on_a_ledger_is_refused_by_every_answer_under_add_remove():
    for asked in (
        lambda: rdp_epsilon_at_order([DRAW], delta=DELTA, order=3.0),
        lambda: delta_of([DRAW], epsilon=1.0, accountant="rdp"),
        lambda: tuning_epsilon([DRAW], delta=DELTA, expected_trials=10),
    ):
        with pytest.raises(PrivacyError, match="without replacement"):
            asked()


# --- Numbers that no training has.


@pytest.mark.parametrize("grid", [0.0, -1e-4, math.nan, math.inf])
def test_grid_outside_its_range_is_refused(grid):
    with pytest.raises(PrivacyError, match="grid"):
        epsilon([steps(1)], delta=DELTA, grid=grid)


def test_count_beyond_all_training_is_refused_before_it_overflows():
    event = SelfComposedEvent(event=steps(10), count=10**400)

    for accountant in ("pld", "rdp", "gdp"):
        with pytest.raises(PrivacyError, match="equal steps"):
            epsilon([event], delta=DELTA, accountant=accountant)


def test_no_charge_gives_budget_back_under_rdp_at_one_order():
    # dp_accounting 0.6.0 answers -1.05e-16 for the divergence of one such step at order 64.
    faint = PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=1e9))
    many = SelfComposedEvent(event=faint, count=10**14)
    real = GaussianEvent(noise_multiplier=1.0)

    alone = rdp_epsilon_at_order([real], delta=DELTA, order=64.0)

    assert rdp_epsilon_at_order([real, many], delta=DELTA, order=64.0) >= alone


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_a_million_steps_are_answered_without_a_loop_over_them(accountant):
    rate = 1.0 if accountant == "gdp" else 1e-4
    event = dpsgd_event(noise_multiplier=1.0, sampling_rate=rate, steps=10**6)

    assert 0 < epsilon([event], delta=1e-6, accountant=accountant) < math.inf
