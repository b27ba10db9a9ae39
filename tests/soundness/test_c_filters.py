"""SOUNDNESS, rule 15, by search: an adversary who picks each round in view of all earlier outputs.

For every menu of releases the site's own verdict says what may follow what; ``choice_trees`` then
finds the delta that the best adversary reaches. It must not pass the policy's. The same search does
pass it where each sequence is merely accounted for as if it had been fixed beforehand.
"""

import pytest
from choice_trees import Release, losses_of, worst_delta
from worlds import campaign_of, policy_of

from fl_core.errors import BudgetExhausted
from fl_core.privacy.accounting import LIVE_GRID, epsilon
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.gaussian_curve import gaussian_delta
from fl_core.privacy.policy import verdict

DELTA = 1e-5
BOTH = pytest.mark.parametrize("removed", [True, False], ids=["removed", "added"])

DEMO = Release(0.8, 0.1, 48)
# A common loss, and a huge one that is as rare as delta: which of the two hurts more depends on
# what was seen before.
MORE_OF_THE_SAME = Release(0.8, 0.1, 33)
RARE_BUT_HUGE = Release(0.1, 9e-6)


def event_of(release):
    return dpsgd_event(
        noise_multiplier=release.noise, sampling_rate=release.rate, steps=release.count
    )


def policy(**changes):
    return policy_of(campaign_of(), "a", **({"delta": DELTA, "series": None} | changes))


def by_verdict(limits, menu, *, depth):
    """What the site would still train, after what it has trained."""

    def allowed(so_far):
        events = [event_of(release) for release in so_far]
        return [release for release in menu if len(so_far) < depth and fits(events, release)]

    def fits(events, release):
        try:
            verdict(limits, events, event_of(release))
        except BudgetExhausted:
            return False
        return True

    return allowed


def in_turn(*releases):
    return lambda so_far: releases[len(so_far) : len(so_far) + 1]


# --- The search itself: it finds known deltas, never more, and a part in thirty less at most.


def test_search_agrees_with_the_exact_curve():
    found = worst_delta(in_turn(Release(1.0)), epsilon=2.0, removed=True)

    exact = gaussian_delta(1.0, 2.0)
    assert exact * 0.97 <= found <= exact


# SOUNDNESS.md, header: 48 steps of the demo are epsilon 7.93 at delta 1e-5.
def test_search_agrees_with_the_stated_epsilon_of_the_demo():
    found = worst_delta(in_turn(DEMO), epsilon=7.93, removed=True)

    assert DELTA * 0.96 <= found <= DELTA


def test_losses_of_one_release_are_probabilities():
    for removed in (True, False):
        assert losses_of(DEMO, removed=removed).chance.sum() == pytest.approx(1.0, abs=1e-9)


# --- Accounting for every sequence by itself is not enough.


def test_rule_15_sequences_that_each_keep_delta_are_together_worth_almost_twice_as_much():
    menu = (MORE_OF_THE_SAME, RARE_BUT_HUGE)
    alone = [epsilon([event_of(DEMO), event_of(r)], delta=DELTA, grid=LIVE_GRID) for r in menu]

    reached = worst_delta(
        lambda so_far: {0: (DEMO,), 1: menu}.get(len(so_far), ()), epsilon=10.0, removed=True
    )

    assert max(alone) < 10.0
    assert reached > 1.6 * DELTA


# --- What the site's verdict allows.


@BOTH
def test_rule_15_no_choice_passes_the_cap_under_rdp_at_one_order(removed):
    limits = policy(epsilon=10.0)
    menu = (Release(0.8, 0.1, 16), Release(1.0, 0.02, 100), Release(3.0), RARE_BUT_HUGE)

    reached = worst_delta(by_verdict(limits, menu, depth=5), epsilon=10.0, removed=removed)

    assert reached <= DELTA


# The order that suits the budget is used up: the verdict stops the adversary, not the menu.
def test_rule_15_the_cap_is_what_ends_the_tree_under_rdp():
    limits = policy(epsilon=10.0)
    allowed = by_verdict(limits, (Release(0.8, 0.1, 16),), depth=5)

    assert [len(allowed((Release(0.8, 0.1, 16),) * n)) for n in range(5)] == [1, 1, 1, 0, 0]


SERIES = {"noise_multiplier": 0.8, "sampling_rate": 0.1, "max_steps": 48}


@BOTH
def test_rule_15_no_choice_between_staying_in_a_series_and_leaving_it_passes_the_cap(removed):
    # 48 steps are 7.93, which leaves part of delta at 8.2 for what leaves the series.
    limits = policy(epsilon=8.2, series=SERIES)
    menu = (Release(0.8, 0.1, 24), Release(2.5), Release(1.2, 0.05, 20), RARE_BUT_HUGE)

    reached = worst_delta(by_verdict(limits, menu, depth=3), epsilon=8.2, removed=removed)

    assert 0 <= reached <= DELTA


def test_rule_15_a_series_that_may_be_left_allows_both_ways():
    limits = policy(epsilon=8.2, series=SERIES)
    allowed = by_verdict(limits, (Release(0.8, 0.1, 24), Release(8.0)), depth=3)

    assert allowed((Release(0.8, 0.1, 24),)) == [Release(0.8, 0.1, 24), Release(8.0)]


# Whole sites: the exact filter wastes nothing, so the adversary comes close to delta.
@BOTH
def test_rule_15_no_choice_passes_the_cap_of_whole_sites_and_some_choice_uses_it_up(removed):
    limits = policy(epsilon=3.0, unit="site")
    menu = (Release(2.0), Release(3.0), Release(5.0), Release(9.0))

    reached = worst_delta(by_verdict(limits, menu, depth=8), epsilon=3.0, removed=removed)

    assert 0.9 * DELTA <= reached <= DELTA


def test_rule_15_whole_sites_are_decided_by_the_exact_filter():
    limits = policy(epsilon=3.0, unit="site")
    rounds = [event_of(Release(5.0))] * 9

    spent = verdict(limits, rounds[:-1], rounds[-1])

    assert spent.accountant == "gdp"
    # Nine rounds at z 5 are one release of z 5/3.
    assert gaussian_delta(3 / 5, spent.epsilon) == pytest.approx(DELTA)
    with pytest.raises(BudgetExhausted, match="by gdp"):
        verdict(limits, rounds, event_of(Release(1.5)))


def test_rule_15_sampled_steps_cannot_be_charged_on_a_whole_sites_ledger():
    with pytest.raises(BudgetExhausted, match="inf by gdp"):
        verdict(policy(epsilon=3.0, unit="site"), [], event_of(Release(5.0, 0.1, 8)))
