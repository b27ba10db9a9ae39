"""The plan that is kept beside a campaign covers all its rounds, from its first statements."""

import pytest
from worlds import campaign_of, world_of

from fl_core.privacy.accounting import epsilon
from fl_core.privacy.plan_start import plan_from_first_round
from fl_core.privacy.policy import verdict
from fl_core.privacy.stated_budget import Budget, both_shown, budget_statement
from fl_core.updates.records import (
    GaussianEvent,
    PoissonEvent,
    SelfComposedEvent,
    Series,
    Terms,
)


def steps(count):
    step = PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=0.8))
    return SelfComposedEvent(event=step, count=count)


# Each count is a number that JSON carries; their product has more digits than Python writes out.
VAST = SelfComposedEvent(event=SelfComposedEvent(event=steps(1), count=10**4000), count=10**4000)
SHORT = Series(noise_multiplier=0.8, sampling_rate=0.1, max_steps=48)

# A minute of work for whoever reads it: a billion steps, a thousand kinds at a large order.
LONG = Series(noise_multiplier=1000.0, sampling_rate=1e-4, max_steps=10**9)
MANY = tuple(GaussianEvent(noise_multiplier=1 + number / 1000) for number in range(1000))


@pytest.fixture
def stated():
    """Site a charged an earlier campaign 16 steps, then round 1 of this one, 8 steps."""
    world = world_of(campaign_of())
    site, event = world.sites["a"], world.assembly.noise.event
    for digest, charged in (("e" * 64, steps(16)), (world.assembly.digest, event)):
        site.ledger.reserve(
            campaign_digest=digest,
            round_number=1,
            plan_sha256="a" * 64,
            event=charged,
            require=lambda events, charged=charged: verdict(site.policy, events, charged),
        )
    return budget_statement(
        site.key,
        site="a",
        campaign_digest=world.assembly.digest,
        round_number=1,
        record=Budget(site.ledger, site.policy, event),
    )


def test_first_round_is_planned_though_it_is_charged_already(stated):
    plan = plan_from_first_round(campaign_of(), {"a": stated})

    own = plan.budgets[0]
    assert (plan.first_round, plan.rounds) == (1, 6)
    assert own.status == "stated"
    assert own.spent == pytest.approx(epsilon([steps(16)], delta=1e-5, grid=1e-3))
    assert own.after[0].epsilon == pytest.approx(epsilon([steps(24)], delta=1e-5, grid=1e-3))
    # The series holds 48 steps, 16 were spent: 4 rounds of 8 are left, round 5 is refused.
    assert (own.rounds_left, own.refused_in) == (4, 5)


def test_site_that_states_less_than_the_round_it_was_written_for_is_not_believed(stated):
    fewer = steps(4)
    lie = stated.model_copy(
        update={"events": (fewer,), "epsilon": epsilon([fewer], delta=stated.delta)}
    )

    plan = plan_from_first_round(campaign_of(), {"a": lie})

    assert plan.budgets[0].status == "does not hold"
    assert "fewer charges" in plan.budgets[0].complaint


@pytest.mark.parametrize(
    "event",
    [
        GaussianEvent(noise_multiplier=1e-300),
        GaussianEvent(noise_multiplier=5e-324),
        GaussianEvent(noise_multiplier=0.0),
        PoissonEvent(sampling_rate=5e-324, event=GaussianEvent(noise_multiplier=1e-3)),
        PoissonEvent(sampling_rate=1e-12, event=GaussianEvent(noise_multiplier=1e300)),
        SelfComposedEvent(event=GaussianEvent(noise_multiplier=1.0), count=10**18),
        SelfComposedEvent(event=steps(1), count=10**400),
    ],
    ids=["tiny", "least", "none", "rare", "loud", "many", "endless"],
)
def test_no_numbers_that_a_site_states_stop_the_plan(stated, event):
    lie = stated.model_copy(update={"events": (event,)})

    plan = plan_from_first_round(campaign_of(), {"a": lie})

    assert plan.budgets[0].status == "does not hold"
    assert plan.budgets[1].status == "not stated"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"terms": Terms(rdp_order=7.0, series=LONG)}, "at most 1000000 are checked"),
        ({"events": (LONG.event(10**8),), "terms": Terms(rdp_order=7.0, series=LONG)}, "steps"),
        ({"events": (VAST,), "terms": Terms(rdp_order=7.0, series=SHORT)}, "too many steps"),
        ({"events": (VAST,), "terms": Terms(rdp_order=7.0)}, "more than 1e+15"),
        ({"events": MANY, "terms": Terms(rdp_order=1000.5)}, "too many to check"),
    ],
    ids=["series", "steps", "vast in a series", "vast", "kinds"],
)
def test_what_would_take_minutes_to_check_is_not_believed(stated, changes, said):
    lie = stated.model_copy(update=changes)

    (own, *_) = plan_from_first_round(campaign_of(), {"a": lie}).budgets

    assert own.status == "does not hold"
    assert said in own.complaint


def test_figures_for_display_that_would_take_minutes_are_left_out():
    # RDP takes such a step in milliseconds; the distribution of one holds millions of points,
    # and a ledger may have many.
    faint = PoissonEvent(sampling_rate=0.5, event=GaussianEvent(noise_multiplier=1e-3))

    shown = both_shown([steps(48)], delta=1e-5, grid=1e-3)

    # The known answers of 48 steps (docs/accounting.md).
    assert shown == (pytest.approx(7.93, abs=0.005), pytest.approx(9.11, abs=0.005))
    assert both_shown([faint], delta=1e-5, grid=1e-3) == (None, None)
