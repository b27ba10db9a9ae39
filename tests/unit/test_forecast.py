"""Forecasts: epsilon after each round, rounds left, noise that keeps a campaign's promise."""

import pytest
from worlds import NO_PRIVACY, campaign_of, policy_of

from fl_core.errors import IncompatibleParts
from fl_core.privacy.accounting import RECORD_GRID, epsilon
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.forecast import (
    epsilon_after,
    locked_noise,
    require_campaign_budget,
    rounds_left,
    schedule,
    with_noise,
)
from fl_core.privacy.policy import verdict
from fl_core.updates.records import NonPrivateEvent

ROUND = dpsgd_event(noise_multiplier=0.8, sampling_rate=0.1, steps=8)
SERIES = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "max_steps": 96}


def record_of(**changes):
    return {"record": campaign_of().privacy.record.model_dump() | changes}


def test_schedule_grows_to_the_campaigns_epsilon():
    after = schedule(campaign_of())

    assert len(after) == 6
    assert after == sorted(after)
    # SOUNDNESS.md, header: 48 steps are 7.93.
    assert after[-1] == pytest.approx(7.93, abs=0.005)


def test_schedule_without_guarantee_is_empty():
    assert schedule(campaign_of(privacy=NO_PRIVACY)) == []


def test_epsilon_of_a_campaign_without_guarantee_is_refused():
    with pytest.raises(IncompatibleParts, match=r"no privacy\.record"):
        epsilon_after(campaign_of(privacy=NO_PRIVACY), 1)


@pytest.mark.parametrize(
    ("charged", "policy", "left"),
    [
        (0, {"epsilon": 11.0, "series": SERIES}, 12),
        (6, {"epsilon": 11.0, "series": SERIES}, 6),
        (12, {"epsilon": 11.0, "series": SERIES}, 0),
        (0, {"epsilon": 8.0, "series": SERIES}, 6),
        (0, {"epsilon": 0.1, "series": SERIES}, 0),
    ],
    ids=["whole series", "half", "end", "budget ends first", "too small"],
)
def test_rounds_left_of_a_series(charged, policy, left):
    limits = policy_of(campaign_of(), "a", **policy)

    assert rounds_left(limits, [ROUND] * charged, ROUND) == left


@pytest.mark.parametrize(
    "series", [None, SERIES | {"max_steps": 20}], ids=["no series", "a series that ends in a round"]
)
def test_rounds_left_by_rdp_are_those_that_the_verdict_allows(series):
    limits = policy_of(campaign_of(), "a", series=series, epsilon=8.0)
    events = []
    for _ in range(rounds_left(limits, [], ROUND)):
        verdict(limits, events, ROUND)
        events.append(ROUND)

    assert len(events) > 0
    assert rounds_left(limits, events, ROUND) == 0


def test_rounds_without_guarantee_are_not_counted():
    limits = policy_of(campaign_of(), "a")

    assert rounds_left(limits, [], NonPrivateEvent()) == 0
    assert rounds_left(limits, [NonPrivateEvent()], ROUND) == 0


def test_campaign_that_passes_its_own_epsilon_is_refused_with_the_noise_it_needs():
    require_campaign_budget(campaign_of())

    with pytest.raises(IncompatibleParts, match=r"8\.4") as caught:
        require_campaign_budget(campaign_of(max_rounds=7))

    needed = float(str(caught.value).split("use ")[1].split(" or more")[0])
    enough = record_of(noise_multiplier=needed)
    require_campaign_budget(campaign_of(max_rounds=7, privacy=enough))


def test_noise_is_calibrated_when_open_and_kept_when_stated():
    open_noise = campaign_of(privacy=record_of(noise_multiplier=None))

    noise = locked_noise(open_noise)

    # SOUNDNESS.md, rule 24: epsilon 8 needs .796 without a grid.
    assert noise == pytest.approx(0.796, rel=2e-3)
    assert locked_noise(campaign_of()) == 0.8
    assert locked_noise(campaign_of(privacy=NO_PRIVACY)) is None


def test_open_noise_cannot_be_forecast():
    with pytest.raises(IncompatibleParts, match="lock the campaign"):
        schedule(campaign_of(privacy=record_of(noise_multiplier=None)))


# What is shown uses the coarse grid, what is promised the one that decides: here six rounds fit
# by the second and not by the first.
def test_rounds_left_are_those_that_the_deciding_grid_allows():
    fine, coarse = (epsilon([ROUND] * 6, delta=1e-5, grid=grid) for grid in (RECORD_GRID, 1e-3))
    limits = policy_of(campaign_of(), "a", epsilon=(fine + coarse) / 2, series=SERIES)

    assert fine < coarse
    assert rounds_left(limits, [], ROUND) == 6


def test_count_that_would_cost_more_than_its_step_is_refused_when_a_campaign_is_checked():
    moving = {"count_stddev": 0.4}  # Half of noise 0.8: the count alone would use all of it.

    with pytest.raises(IncompatibleParts, match=r"count_stddev 0\.4 is too small"):
        with_noise(campaign_of(privacy=record_of(adaptive_clip=moving)))
