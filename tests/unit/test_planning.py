"""Plans: what a campaign will cost, from what the sites state and nothing else."""

import itertools
import math

import pytest
from worlds import NO_PRIVACY, campaign_of, world_of

from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import LIVE_GRID, epsilon
from fl_core.privacy.federation import NAME
from fl_core.privacy.planning import Stated, plan_campaign
from fl_core.privacy.policy import verdict
from fl_core.privacy.round_events import round_costs
from fl_core.privacy.stated_budget import Budget, budget_statement
from fl_core.updates.records import (
    GaussianEvent,
    PoissonEvent,
    SelfComposedEvent,
    Series,
    Spending,
    Terms,
)

SITES = ("a", "b", "c")
OTHER = Series(noise_multiplier=1.0, sampling_rate=0.1, max_steps=99)


def steps(count, *, noise=0.8, rate=0.1):
    step = PoissonEvent(sampling_rate=rate, event=GaussianEvent(noise_multiplier=noise))
    return SelfComposedEvent(event=step, count=count)


def stated_after(rounds, **policy):
    """A real statement of site a, whose ledger holds so many rounds of the tiny campaign."""
    world = world_of(campaign_of(), **policy)
    site, event = world.sites["a"], world.assembly.noise.event
    for number in range(1, rounds + 1):
        site.ledger.reserve(
            campaign_digest=world.assembly.digest,
            round_number=number,
            plan_sha256="a" * 64,
            event=event,
            require=lambda events: verdict(site.policy, events, event),
        )
    return budget_statement(
        site.key,
        site="a",
        campaign_digest=world.assembly.digest,
        round_number=max(rounds, 1),
        record=Budget(site.ledger, site.policy, event),
    )


def budget_of(plan, site, level="record"):
    (found,) = [b for b in plan.budgets if (b.site, b.level) == (site, level)]
    return found


def test_campaign_alone_ends_at_the_epsilon_of_its_schedule():
    # 6 rounds of 8 steps, noise 0.8, rate 0.1, delta 1e-5: 7.93 by PLD and 9.11 by RDP, from
    # dp_accounting itself (SOUNDNESS, head).
    plan = plan_campaign(campaign_of(), stated={}, rounds=range(1, 7))

    assert [b.site for b in plan.budgets] == list(SITES)
    for budget in plan.budgets:
        assert budget.status == "not stated"
        assert budget.accountant == "pld"
        assert budget.epsilon_at_end == pytest.approx(7.93, abs=0.005)
        assert budget.epsilon_pld == budget.epsilon_at_end
        assert budget.epsilon_rdp == pytest.approx(9.11, abs=0.005)
        assert (budget.spent, budget.rounds_left, budget.second_campaign_rounds) == (None,) * 3
    assert plan.ends_first is None


def test_points_are_the_epsilons_of_each_round():
    plan = plan_campaign(campaign_of(), stated={}, rounds=range(1, 7))

    points = budget_of(plan, "a").after

    assert [p.round for p in points] == [1, 2, 3, 4, 5, 6]
    for point in points:
        alone = epsilon([steps(8 * point.round)], delta=1e-5, grid=LIVE_GRID)
        assert point.epsilon == pytest.approx(alone)


def test_site_that_has_spent_goes_on_from_there_and_ends_first():
    plan = plan_campaign(campaign_of(), stated={"a": Stated(stated_after(4))}, rounds=range(1, 7))

    own = budget_of(plan, "a")

    # The series holds 6 rounds, 4 are charged: rounds 3 to 6 of the new campaign are refused.
    assert (own.status, own.rounds_left, own.refused_in) == ("stated", 2, 3)
    assert own.spent == pytest.approx(epsilon([steps(32)], delta=1e-5))
    assert own.after[1].epsilon == pytest.approx(epsilon([steps(48)], delta=1e-5, grid=LIVE_GRID))
    assert own.second_campaign_rounds == 0
    assert (plan.ends_first, plan.ends_first_level) == ("a", "record")


def test_beyond_the_series_the_accountant_of_rule_15_decides():
    plan = plan_campaign(campaign_of(), stated={"a": Stated(stated_after(4))}, rounds=range(1, 7))

    own = budget_of(plan, "a")

    # The series uses nearly all of delta at epsilon 8, so RDP is left with next to nothing.
    assert own.accountant == "rdp"
    assert own.epsilon_at_end is None or own.epsilon_at_end > own.epsilon_pld
    assert own.noise_needed is None or own.noise_needed > own.noise


def test_noise_that_is_needed_fits_and_a_little_less_does_not():
    stated = Stated(stated_after(1, series=None, rdp_order=4.0, epsilon=12.0))
    campaign = campaign_of()

    own = budget_of(plan_campaign(campaign, stated={"a": stated}, rounds=range(1, 7)), "a")

    def ends_at(noise):
        record = campaign.privacy.record.model_copy(update={"noise_multiplier": noise})
        privacy = campaign.privacy.model_copy(update={"record": record})
        noised = campaign.model_copy(update={"privacy": privacy})
        return budget_of(
            plan_campaign(noised, stated={"a": stated}, rounds=range(1, 7)), "a"
        ).epsilon_at_end

    assert own.accountant == "rdp"
    assert own.noise_needed > own.noise
    assert ends_at(own.noise_needed) <= 12.0
    assert ends_at(own.noise_needed - 2e-4) > 12.0


def test_noise_that_fits_already_is_what_is_needed():
    stated = Stated(stated_after(1, series=None, rdp_order=4.0, epsilon=100.0))

    own = budget_of(plan_campaign(campaign_of(), stated={"a": stated}, rounds=range(1, 4)), "a")

    assert own.noise_needed == own.noise == 0.8
    assert own.second_campaign_rounds == 6


def test_rounds_of_a_running_campaign_are_numbered_from_the_next():
    plan = plan_campaign(campaign_of(), stated={"a": Stated(stated_after(4))}, rounds=range(5, 7))

    own = budget_of(plan, "a")

    assert [p.round for p in own.after] == [5, 6]
    assert own.refused_in is None
    assert own.epsilon_at_end == pytest.approx(7.93, abs=0.005)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.5},
        {"accountant": "rdp"},
        {"events": ()},
        {"terms": None},
        {"events": (steps(8),)},
        {"delta": 1e-3},
        {"terms": Terms(rdp_order=2000.0)},
        {"terms": Terms(rdp_order=7.0)},
        {"terms": Terms(rdp_order=7.0, series=OTHER)},
    ],
    ids=["epsilon", "accountant", "no-events", "no-terms", "fewer-events", "delta", "order",
         "no-series", "other-series"],
)  # fmt: skip
def test_statement_that_does_not_follow_from_its_events_is_not_believed(changes):
    lie = stated_after(4).model_copy(update=changes)

    own = budget_of(
        plan_campaign(campaign_of(), stated={"a": Stated(lie)}, rounds=range(1, 7)), "a"
    )

    assert own.status == "does not hold"
    assert own.complaint
    assert own.spent is None
    assert own.limit == 8.0


def test_reason_why_there_is_no_statement_is_shown():
    forged = Stated(complaint="the statement under its name is not signed by its key")

    own = budget_of(plan_campaign(campaign_of(), stated={"b": forged}, rounds=range(1, 3)), "b")

    assert (own.status, own.complaint) == ("does not hold", forged.complaint)


def test_statement_about_another_unit_says_nothing_about_this_one():
    statement = stated_after(2)
    privacy = campaign_of().privacy.model_dump(exclude_none=True)
    privacy["record"] |= {"unit": "patient_id", "max_rows_per_unit": 4}

    plan = plan_campaign(
        campaign_of(privacy=privacy), stated={"a": Stated(statement)}, rounds=range(1, 3)
    )

    own = budget_of(plan, "a")
    assert own.status == "does not hold"
    assert "'row'" in own.complaint
    assert "'patient_id'" in own.complaint


def test_without_guarantee_there_is_nothing_to_plan_and_the_reason_is_kept():
    plan = plan_campaign(campaign_of(privacy=NO_PRIVACY), stated={}, rounds=range(1, 3))

    assert plan.budgets == ()
    assert plan.worst_site is None
    assert plan.reason == NO_PRIVACY["none"]["reason"]


@pytest.mark.parametrize(("rounds", "first"), [(0, 1), (9999, 2)])
def test_rounds_outside_a_campaign_cannot_be_planned(rounds, first):
    with pytest.raises(PrivacyError, match="cannot be planned"):
        plan_campaign(campaign_of(), stated={}, rounds=range(first, first + rounds))


def test_a_thousand_rounds_are_drawn_at_few_points():
    record = campaign_of().privacy.record.model_copy(update={"noise_multiplier": 4.0})
    campaign = campaign_of(
        privacy={"record": record.model_dump(exclude_none=True)}, max_rounds=1000
    )

    points = budget_of(plan_campaign(campaign, stated={}, rounds=range(1, 1001)), "a").after

    assert (points[0].round, points[-1].round) == (1, 1000)
    assert len(points) <= 26
    assert all(x.epsilon < y.epsilon for x, y in itertools.pairwise(points))


def test_second_campaign_has_what_the_first_leaves():
    stated = Stated(stated_after(1, series=None, rdp_order=4.0, epsilon=30.0))

    one = budget_of(plan_campaign(campaign_of(), stated={"a": stated}, rounds=range(1, 3)), "a")
    two = budget_of(plan_campaign(campaign_of(), stated={"a": stated}, rounds=range(1, 4)), "a")

    assert 3 < one.rounds_left == two.rounds_left
    assert one.second_campaign_rounds == min(one.rounds_left - 2, 6)
    assert two.second_campaign_rounds == min(one.rounds_left - 3, 6)


def client_campaign(mechanism, *, record=False):
    privacy = {
        "client": {
            "epsilon": 20.0,
            "delta": 1e-5,
            "clip_norm": 0.5,
            "noise_multiplier": 1.0,
            "mechanism": mechanism,
        }
    }
    if record:
        privacy["record"] = campaign_of().privacy.record.model_dump(exclude_none=True)
    return campaign_of(privacy=privacy)


@pytest.mark.parametrize(
    ("mechanism", "record", "expected"),
    [
        ("gaussian", False, [("client", "coordinator", "site", 1.0)]),
        (
            "gaussian",
            True,
            [("record", "site", "row", None), ("client", "coordinator", "site", 1.0)],
        ),
        ("local_gaussian", False, [("record", "site", None, 0.5), ("client", "site", "site", 1.0)]),
        (
            "local_gaussian",
            True,
            [("record", "site", "row", None), ("client", "site", "site", 1.0)],
        ),
    ],
)
def test_every_ledger_that_a_round_is_charged_on_is_planned(mechanism, record, expected):
    costs = round_costs(client_campaign(mechanism, record=record))

    found = [
        (c.level, c.charged_by, c.unit, getattr(c.event, "noise_multiplier", None)) for c in costs
    ]
    assert found == expected


def test_whole_sites_are_decided_by_the_gaussian_filter():
    # 4 rounds at noise 1 are one release at noise 1/2, which is mu = 2
    # (Balle and Wang 2018, theorem 8): epsilon by bisection below.
    plan = plan_campaign(client_campaign("gaussian"), stated={}, rounds=range(1, 5))

    (budget,) = plan.budgets

    assert (budget.site, budget.level, budget.accountant) == (NAME, "client", "gdp")
    assert budget.epsilon_at_end == pytest.approx(mu_epsilon(2.0, 1e-5), abs=1e-4)


def test_worst_is_named_where_the_campaign_promises_something():
    # Local noise alone costs rows more (half the noise) and promises them nothing.
    plan = plan_campaign(client_campaign("local_gaussian"), stated={}, rounds=range(1, 3))

    assert budget_of(plan, "a").limit is None
    assert budget_of(plan, "a").epsilon_at_end > plan.worst_epsilon
    assert plan.worst_epsilon == budget_of(plan, "a", "client").epsilon_at_end


def test_site_without_a_budget_for_its_whole_data_states_none_there():
    campaign = client_campaign("local_gaussian", record=True)

    plan = plan_campaign(campaign, stated={"a": Stated(stated_after(1))}, rounds=range(1, 3))

    assert budget_of(plan, "a").status == "stated"
    assert budget_of(plan, "a", "client").status == "not stated"


def mu_epsilon(mu, delta):
    """Epsilon of mu-GDP by bisection on its delta (Dong, Roth, Su 2022, corollary 2.13)."""

    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        at = cdf(-middle / mu + mu / 2) - math.exp(middle) * cdf(-middle / mu - mu / 2)
        low, high = (middle, high) if at > delta else (low, middle)
    return high


def test_federation_goes_on_from_what_its_ledger_holds():
    spent = Spending(
        epsilon=mu_epsilon(1.0, 1e-5),
        epsilon_limit=20.0,
        delta=1e-5,
        accountant="gdp",
        rounds_left=9,
        events=(GaussianEvent(noise_multiplier=1.0),),
        terms=Terms(rdp_order=4.0),
        ledger_seq=3,
        ledger_head_sha256="e" * 64,
    )

    (budget,) = plan_campaign(
        client_campaign("gaussian"), stated={}, rounds=range(1, 4), federation=spent
    ).budgets

    assert budget.status == "stated"
    assert budget.epsilon_at_end == pytest.approx(mu_epsilon(2.0, 1e-5), abs=1e-4)
    # mu^2 of 20 at 1e-5 holds this many rounds of noise 1 beyond the first.
    held = max(n for n in range(1, 100) if mu_epsilon(math.sqrt(n), 1e-5) <= 20.0)
    assert budget.rounds_left == held - 1
