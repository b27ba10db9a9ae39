"""The same questions to Opacus: its accountants are another implementation of the same bounds."""

import warnings

import pytest

from fl_core.privacy.accountants import rdp_of
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.calibration import calibrate_noise_multiplier
from fl_core.privacy.events import dpsgd_event, merged

DELTA = 1e-5

# Noise multiplier, sampling rate, steps: the demo, Opacus' own test (accountants_test.py), a long
# and a short run, every unit in every batch.
RUNS = [(0.8, 0.1, 48), (1.5, 0.04, 2250), (1.1, 0.001, 20_000), (0.6, 0.02, 50), (4.0, 1.0, 50)]


@pytest.fixture(scope="module")
def opacus():
    with warnings.catch_warnings():
        # Opacus 1.6.0 imports modules of torch that torch calls deprecated.
        warnings.simplefilter("ignore")
        from opacus import accountants
    return accountants


def asked(accountant, run, **options):
    accountant.history = [run]
    with warnings.catch_warnings():
        # It says when its best order is at the end of its list.
        warnings.simplefilter("ignore")
        return accountant.get_epsilon(delta=DELTA, **options)


def event_of(noise, rate, steps):
    return dpsgd_event(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def rdp_at(run, orders):
    return float(rdp_of(tuple(merged([event_of(*run)])), orders=orders).get_epsilon(DELTA))


# At whole orders the divergence is a finite sum, and both convert by proposition 12 of Canonne et
# al. 2020: only rounding differs.
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_rdp_equals_that_of_opacus_at_whole_orders(run, opacus):
    orders = tuple(float(order) for order in range(2, 64))

    theirs = asked(opacus.RDPAccountant(), run, alphas=list(orders))

    assert rdp_at(run, orders) == pytest.approx(theirs, rel=1e-9)


# Between whole orders dp_accounting adds up a series without its signs, which is an upper bound:
# 0.7 % more divergence at order 2.2 for the demo, and never less.
@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("order", [2.2, 2.8, 3.3, 6.1, 10.9])
def test_rdp_between_whole_orders_is_never_below_that_of_opacus(run, order, opacus):
    theirs = asked(opacus.RDPAccountant(), run, alphas=[order])

    assert theirs * (1 - 1e-9) <= rdp_at(run, (order,)) <= theirs * 1.01


# Default orders of the two differ, which moves epsilon by up to 5 % when it is large.
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_rdp_at_default_orders_is_close_to_that_of_opacus(run, opacus):
    ours = epsilon([event_of(*run)], delta=DELTA, accountant="rdp")

    assert ours == pytest.approx(asked(opacus.RDPAccountant(), run), rel=0.05)


# PRV answers with an upper bound and names its errors: the true epsilon lies within eps_error
# under it, at a delta that is off by delta_error. Ours is an upper bound too.
@pytest.mark.parametrize("run", RUNS[:4], ids=str)
def test_pld_lies_in_the_interval_of_prv(run, opacus):
    eps_error = 0.01
    upper = asked(opacus.PRVAccountant(), run, eps_error=eps_error, delta_error=DELTA / 1000)

    ours = epsilon([event_of(*run)], delta=DELTA)

    assert upper - 2 * eps_error - 1e-6 <= ours <= upper + 1e-6


# Opacus issue 308: its search could return noise whose epsilon is above the target.
@pytest.mark.parametrize(
    ("target", "rate", "steps"), [(8.0, 0.04, 2250), (3.0, 0.01, 1000), (1.0, 0.1, 50)], ids=str
)
def test_calibrated_noise_is_theirs_and_never_above_the_target(target, rate, steps, opacus):
    from opacus.accountants.utils import get_noise_multiplier

    ours = calibrate_noise_multiplier(
        epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps, accountant="rdp"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=target,
            target_delta=DELTA,
            sample_rate=rate,
            steps=steps,
            accountant="rdp",
            epsilon_tolerance=0.001,
        )

    assert ours == pytest.approx(theirs, rel=0.005)
    assert epsilon([event_of(ours, rate, steps)], delta=DELTA, accountant="rdp") <= target
    assert asked(opacus.RDPAccountant(), (ours, rate, steps)) <= target * (1 + 1e-3)
