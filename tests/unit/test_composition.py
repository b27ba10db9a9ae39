"""How rounds, visits, sites and tuning runs add up, and what costs nothing."""

import math

import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import POISSON, epsilon, tuning_epsilon
from fl_core.privacy.composition import federation_epsilon, site_epsilons, visits_event
from fl_core.privacy.events import dpsgd_event, gaussian_event, merged, repeated
from fl_core.updates.records import NonPrivateEvent

DELTA = 1e-5


def steps(count, *, noise=0.8, rate=0.1):
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=count)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
@pytest.mark.parametrize(
    "event",
    [
        dpsgd_event(noise_multiplier=1.0, sampling_rate=0.1, steps=0),
        dpsgd_event(noise_multiplier=0.0, sampling_rate=0.0, steps=10),
        gaussian_event(noise_multiplier=1.0, rounds=0),
        repeated(dpsgd_event(noise_multiplier=1.0, sampling_rate=0.1, steps=8), 0),
    ],
    ids=["no steps", "nobody drawn", "no rounds", "not asked"],
)
def test_a_round_without_private_steps_costs_nothing(event, accountant):
    assert merged([event]) == []
    assert epsilon([event, steps(4, rate=1.0)], delta=DELTA, accountant=accountant) == epsilon(
        [steps(4, rate=1.0)], delta=DELTA, accountant=accountant
    )


# An empty batch is one of those that the rate allows for: the step is charged like any other.
def test_a_step_is_charged_whatever_its_batch_held():
    assert merged([dpsgd_event(noise_multiplier=1.0, sampling_rate=1e-9, steps=3)])[0][1] == 3


# Site a ran three rounds of which one update was lost: it left the site, so it counts. Site b
# declined all of them before any forward pass. Disjoint records: the worst site, not the sum.
def test_the_federation_is_its_worst_site_and_a_lost_update_counts():
    ran = [steps(8)] * 3
    events = {"a": ran, "b": [], "c": [steps(8)]}

    spent = site_epsilons(events, delta=DELTA)

    assert spent["b"] == 0.0
    assert spent["a"] == epsilon([steps(24)], delta=DELTA) > spent["c"] > 0
    assert federation_epsilon(events, delta=DELTA) == spent["a"]
    assert federation_epsilon({}, delta=DELTA) == 0.0


# SOUNDNESS and the notes, C4: p .1, q .1, z .8, 10 steps, 50 rounds spends at least 3.457; the
# product of the rates would say 2.40.
def test_no_credit_is_taken_for_drawing_sites():
    numbers = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "steps": 10, "rounds": 50}

    visits = visits_event(site_sampling_rate=0.1, **numbers)

    assert merged([visits]) == merged([steps(500)])
    assert merged([visits_event(site_sampling_rate=0.0, **numbers)]) == []
    with pytest.raises(PrivacyError, match="site_sampling_rate"):
        visits_event(site_sampling_rate=1.1, **numbers)


# --- Tuning.


def test_best_of_one_run_costs_more_than_the_run_and_less_than_all_of_them():
    run = steps(48)
    one, all_of_them = (epsilon([repeated(run, n)], delta=DELTA, accountant="rdp") for n in (1, 10))

    for shape in (POISSON, 1.0, 0.0):
        best = tuning_epsilon([run], delta=DELTA, expected_trials=10, shape=shape)
        assert one < best < all_of_them


def test_tuning_of_nothing_is_free_and_without_noise_is_infinite():
    assert tuning_epsilon([], delta=DELTA, expected_trials=10) == 0.0
    assert tuning_epsilon([NonPrivateEvent()], delta=DELTA, expected_trials=10) == math.inf


@pytest.mark.parametrize(
    "numbers",
    [
        {"expected_trials": 0.5},
        {"expected_trials": math.inf},
        {"expected_trials": True},
        {"shape": -1.0},
        {"shape": math.nan},
        {"delta": 0.0},
    ],
    ids=str,
)
def test_impossible_tuning_is_refused_by_name(numbers):
    with pytest.raises(PrivacyError, match=next(iter(numbers))):
        tuning_epsilon([steps(1)], **({"delta": DELTA, "expected_trials": 10} | numbers))
