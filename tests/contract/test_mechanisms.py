"""What every registered mechanism keeps, asked of each without being named here."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from worlds import campaign_of, policy_of

from fl_core import privacy  # noqa: F401  registers the mechanisms
from fl_core.campaign.components import ComponentSpec
from fl_core.errors import BudgetExhausted, IncompatibleParts
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.events import merged
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan
from fl_core.privacy.policy import verdict
from fl_core.privacy.randomness import SeededStream
from fl_core.updates.records import GaussianEvent, PoissonEvent

RECORD = campaign_of().privacy.record
KINDS = pytest.mark.parametrize("kind", MECHANISMS.kinds())
N = 100_000
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


def plan_of(kind, *, steps=8, **changes):
    return MECHANISMS.build(ComponentSpec(kind=kind)).plan(
        RECORD.model_copy(update=changes), steps=steps
    )


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
    assert count == plan.steps == 8
    assert plan.assumed_sensitivity >= clip_norm


@KINDS
def test_event_holds_the_sampling_that_the_plan_asks_for(kind):
    ((step, _),) = merged([plan_of(kind, sampling_rate=0.25).event])
    ((whole, _),) = merged([plan_of(kind, sampling_rate=1.0).event])

    assert step.sampling_rate == plan_of(kind, sampling_rate=0.25).sampling_rate == 0.25
    assert isinstance(whole, GaussianEvent)


@KINDS
def test_epsilon_falls_as_noise_grows(kind):
    spent = [
        epsilon([plan_of(kind, noise_multiplier=z).event], delta=1e-5, grid=1e-3)
        for z in (0.6, 0.8, 1.2, 2.4)
    ]

    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == 4


@KINDS
def test_round_that_is_not_affordable_is_refused(kind):
    event = plan_of(kind).event
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
@pytest.mark.parametrize(
    "changes",
    [{"unit": "patient"}, {"max_rows_per_unit": 2}, {"noise_multiplier": None}],
    ids=["unit", "rows", "open noise"],
)
def test_promise_that_cannot_be_kept_is_refused(kind, changes):
    with pytest.raises(IncompatibleParts):
        plan_of(kind, **changes)
