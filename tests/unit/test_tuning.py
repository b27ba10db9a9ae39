"""What choosing the best of several runs costs."""

import pytest

from fl_core.errors import PrivacyError
from fl_core.privacy.tuning import tuning_cost
from tests.worlds import NO_PRIVACY, campaign_of


def campaign(**changes):
    record = {
        "epsilon": 50.0,
        "delta": 1e-5,
        "clip_norm": 1.0,
        "sampling_rate": 0.02,
        "noise_multiplier": 1.0,
    }
    training = {"local_steps": 50, "batch_size": 16, "learning_rate": 0.1}
    return campaign_of(max_rounds=6, training=training, privacy={"record": record}, **changes)


def test_cost_is_that_of_the_published_case():
    # privacy.json, tuning-poisson-10: noise 1, rate 0.02, 300 steps, delta 1e-5, Poisson mean 10.
    cost = tuning_cost(campaign(), mean_runs=10)

    assert cost.one_run == pytest.approx(2.563394, rel=0.005)
    assert cost.best_of_random == pytest.approx(5.011063, rel=0.005)
    assert cost.all_runs == pytest.approx(7.65132, rel=0.005)


@pytest.mark.parametrize("mean_runs", [0.5, 0, -1, float("nan"), float("inf")])
def test_mean_that_is_no_number_of_runs_is_refused(mean_runs):
    with pytest.raises(PrivacyError, match="mean number of runs"):
        tuning_cost(campaign(), mean_runs=mean_runs)


def test_campaign_without_guarantee_has_no_price():
    with pytest.raises(PrivacyError, match="no guarantee"):
        tuning_cost(campaign_of(privacy=NO_PRIVACY), mean_runs=3)
