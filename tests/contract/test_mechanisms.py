"""What every registered mechanism keeps, asked of each without being named here."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from worlds import campaign_of, policy_of

from fl_core import privacy  # noqa: F401  registers the mechanisms
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import AdaptiveClip, ClientDp, GroupBounds
from fl_core.errors import BudgetExhausted, IncompatibleParts
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.events import merged
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting
from fl_core.privacy.policy import verdict
from fl_core.privacy.randomness import SeededStream
from fl_core.updates.records import GaussianEvent, PoissonEvent

RECORD = campaign_of().privacy.record
CLIENT = ClientDp(
    epsilon=8.0, delta=1e-5, clip_norm=0.3, noise_multiplier=0.8, mechanism="gaussian"
)
SETTING = NoiseSetting(steps=8, sites=5, dimension=100)
KINDS = pytest.mark.parametrize("kind", MECHANISMS.kinds())
N = 100_000
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


def plan_of(kind, **changes):
    mechanism = MECHANISMS.build(ComponentSpec(kind=kind))
    guarantee = RECORD if mechanism.protects == "record" else CLIENT
    return mechanism.plan(guarantee.model_copy(update=changes), SETTING)


@KINDS
@pytest.mark.parametrize("clip_norm", [0.3, 2.0])
def test_measured_noise_is_that_of_the_event(kind, clip_norm):
    plan = plan_of(kind, clip_norm=clip_norm)
    noise = plan.noise_stddev * SeededStream(3).normal((N,)).astype(np.float64)

    ((step, count),) = merged([plan.event])

    multiplier = (step.event if isinstance(step, PoissonEvent) else step).noise_multiplier
    charged = multiplier * plan.assumed_sensitivity
    # The variance of a sample variance of normals is 2 / N.
    assert abs(np.mean(noise**2) / charged**2 - 1) < Z * math.sqrt(2 / N)
    assert count == plan.steps
    assert plan.assumed_sensitivity >= clip_norm


@KINDS
def test_event_holds_the_sampling_that_the_plan_asks_for(kind):
    plan = plan_of(kind)

    ((step, count),) = merged([plan.event])

    rate = step.sampling_rate if isinstance(step, PoissonEvent) else 1.0
    assert (rate, count) == (plan.sampling_rate, plan.steps)


def test_sampling_rate_of_dpsgd_is_that_of_its_event_and_1_is_no_sampling():
    ((step, _),) = merged([plan_of("dpsgd", sampling_rate=0.25).event])
    ((whole, _),) = merged([plan_of("dpsgd", sampling_rate=1.0).event])

    assert step.sampling_rate == 0.25
    assert isinstance(whole, GaussianEvent)


@KINDS
def test_epsilon_falls_as_noise_grows(kind):
    spent = [
        epsilon([plan_of(kind, noise_multiplier=z).event], delta=1e-5, grid=1e-3)
        for z in (0.6, 0.8, 1.2, 2.4)
    ]

    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == 4


def test_round_that_is_not_affordable_is_refused():
    event = plan_of("dpsgd").event
    spent = epsilon([event], delta=1e-5)
    enough, too_little = (
        policy_of(campaign_of(), "a", epsilon=spent * factor) for factor in (1.01, 0.99)
    )

    assert verdict(enough, [], event).epsilon == pytest.approx(spent)
    with pytest.raises(BudgetExhausted):
        verdict(too_little, [], event)


@KINDS
def test_plan_whose_event_is_of_other_noise_cannot_be_made(kind):
    plan = plan_of(kind).model_dump()

    for field in ("noise_stddev", "assumed_sensitivity"):
        with pytest.raises(ValidationError, match="account for this noise"):
            NoisePlan.model_validate(plan | {field: plan[field] / 10})


@KINDS
def test_open_noise_is_refused(kind):
    with pytest.raises(IncompatibleParts, match="is open; lock the campaign"):
        plan_of(kind, noise_multiplier=None)


@KINDS
def test_guarantee_of_the_other_level_is_refused(kind):
    mechanism = MECHANISMS.build(ComponentSpec(kind=kind))
    other = CLIENT if mechanism.protects == "record" else RECORD

    with pytest.raises(IncompatibleParts, match=r"name it under privacy\."):
        mechanism.plan(other, SETTING)


def test_noise_of_two_bounds_is_for_the_root_of_the_sum_of_squares():
    plan = plan_of("dpsgd", clip_norm=GroupBounds(adapter=3.0, head=4.0))

    assert plan.assumed_sensitivity == plan.clip_norm == 5.0
    assert plan.noise_stddev == pytest.approx(0.8 * 5.0)


def test_moving_clip_norm_pays_for_its_count_with_more_noise_on_the_gradient():
    # Andrew et al. 2021, section 3: (2^-2 - (2 * 5)^-2)^-1/2 = 2.0412
    plan = plan_of("dpsgd", noise_multiplier=2.0, adaptive_clip=AdaptiveClip(count_stddev=5.0))

    assert plan.noise_stddev / plan.clip_norm == pytest.approx(2.041241, rel=1e-6)
    ((step, _),) = merged([plan.event])
    assert step.event.noise_multiplier == 2.0


def test_count_noise_that_costs_more_than_the_step_is_refused():
    with pytest.raises(IncompatibleParts, match="is too small for noise_multiplier 2"):
        plan_of("dpsgd", noise_multiplier=2.0, adaptive_clip=AdaptiveClip(count_stddev=0.2))
