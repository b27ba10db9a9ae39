"""When a round closes and with whom: count, share, grace time, sites asked besides."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, to_bytes
from fl_core.assembly import build_parts
from fl_core.campaign.roster import Roster
from fl_core.cohorts.quorum import Closing, Tally, has_quorum, is_closed
from fl_core.cohorts.rules import draw_cohort
from fl_core.cohorts.selection import Uniform
from fl_core.errors import IncompatibleParts
from fl_core.privacy.forecast import with_noise
from fl_core.rounds.closing import close_collection, quorum_missed
from fl_core.rounds.documents import QuorumReached
from fl_core.rounds.upload_time import PLAN_CLOCK
from tests.round_steps import answers_of, collect, finish, plan_of, release, take_part
from tests.worlds import AFTER_DEADLINE, NO_PRIVACY, NOW, campaign_of, world_of

UNIFORM = {"kind": "uniform", "params": {"size": 2}}
CENTRAL = {"client": {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "mechanism": "gaussian"}}
FIVE = ("a", "b", "c", "d", "e")


def open_campaign_of(sites=("a", "b", "c"), **cohort):
    return campaign_of(sites=sites, privacy=NO_PRIVACY, cohort=cohort)


def with_sizes(world, **sizes):
    """Give the sites of a world declared sizes, as their enrolment would have."""
    stored = read_document(world.store, world.store.list(keys.ROSTERS)[-1], Roster)
    entries = tuple(
        e.model_copy(update={"declared_examples": sizes.get(e.site)}) for e in stored.entries
    )
    longer = Roster(version=stored.version + 1, entries=entries)
    world.store.put_once(keys.roster(longer.version), to_bytes(longer))
    return world


@pytest.mark.parametrize(
    ("tally", "closing", "expected"),
    [
        (Tally(5, 3, 2), Closing(3), True),
        (Tally(5, 2, 3), Closing(3), False),
        (Tally(5, 3, 2, share=0.6), Closing(3, share=0.6), True),
        (Tally(5, 3, 2, share=0.59), Closing(3, share=0.6), False),
        (Tally(5, 2, 3, share=0.99), Closing(3, share=0.6), False),
        (Tally(5, 3, 2, share=None), Closing(3, share=0.6), False),
    ],
    ids=["count", "too few", "share", "too small a share", "share without count", "unknown"],
)
def test_quorum_is_by_count_and_by_share(tally, closing, expected):
    assert has_quorum(tally, closing) is expected


@pytest.mark.parametrize(
    ("tally", "closing", "late", "since_s", "expected"),
    [
        (Tally(3, 2, 1), Closing(2), False, None, False),
        (Tally(3, 2, 0), Closing(2), False, None, True),
        (Tally(3, 1, 2), Closing(2), True, None, True),
        (Tally(3, 2, 1), Closing(2, grace_s=10), False, 9.9, False),
        (Tally(3, 2, 1), Closing(2, grace_s=10), False, 10.0, True),
        (Tally(3, 1, 2), Closing(2, grace_s=10), False, None, False),
        (Tally(2, 2, 1), Closing(2, ends_at_wanted=True), False, None, True),
        (Tally(2, 1, 2), Closing(1, ends_at_wanted=True), False, None, False),
        (Tally(2, 2, 1, 0.1), Closing(2, 0.5, ends_at_wanted=True), False, None, False),
    ],
    ids=[
        "waits for the rest",
        "all have answered",
        "deadline",
        "within grace",
        "grace is over",
        "no grace without a quorum",
        "as many as wanted",
        "fewer than wanted",
        "wanted number without its share",
    ],
)
def test_round_closes_when_its_rule_says(tally, closing, late, since_s, expected):
    assert is_closed(tally, closing, late=late, since_quorum_s=since_s) is expected


def test_release_needs_the_stated_share_of_declared_examples():
    campaign = open_campaign_of(quorum=2, quorum_share=0.6)
    world = with_sizes(world_of(campaign), a=64, b=64, c=256)
    for site in "ab":
        take_part(world, site)

    outcome = finish(world)

    # 64 + 64 of 384 declared examples are a third.
    assert outcome.status == "skipped"
    missed = quorum_missed(world.assembly, world.store, plan_of(world), collect(world))
    assert missed == "the 2 accepted sites declared 33% of the cohort's examples, 60% are needed"


def test_share_that_is_reached_releases_with_fewer_sites():
    campaign = open_campaign_of(quorum=2, quorum_share=0.6)
    world = with_sizes(world_of(campaign), a=64, b=64, c=256)
    for site in "ac":
        take_part(world, site)

    outcome = finish(world)

    assert (outcome.status, outcome.contributors) == ("released", ("a", "c"))


def test_share_is_that_of_the_plans_roster():
    campaign = open_campaign_of(quorum=1, quorum_share=0.6)
    world = with_sizes(world_of(campaign), a=64, b=64, c=256)
    take_part(world, "c")
    with_sizes(world, a=1024, b=64, c=256)

    assert finish(world).status == "released"


def test_share_without_declared_sizes_is_refused_before_anybody_is_asked():
    world = with_sizes(world_of(open_campaign_of(quorum_share=0.5)), a=64, b=64)

    with pytest.raises(IncompatibleParts, match="site 'c' declared none"):
        plan_of(world)

    assert world.store.list(keys.rounds("tiny")) == []


def test_grace_time_counts_from_the_first_sight_of_the_quorum_also_after_a_restart():
    world = world_of(open_campaign_of(quorum=2, grace_s=60))
    for site in "ab":
        take_part(world, site)

    first = collect(world, now=NOW + timedelta(seconds=10))
    # Another process, which has seen nothing: the grace time does not begin anew.
    second = collect(world, now=NOW + timedelta(seconds=69))
    third = collect(world, now=NOW + timedelta(seconds=70))

    assert (first, second) == (None, None)
    assert (third.accepted, third.answers["c"].status) == (["a", "b"], "missing")
    assert third.has_quorum
    reached = read_document(world.store, keys.quorum("tiny", 1), QuorumReached)
    assert reached.at == NOW + timedelta(seconds=10)


def test_grace_time_never_passes_the_deadline():
    world = world_of(open_campaign_of(quorum=2, grace_s=300, deadline_s=600))
    for site in "ab":
        take_part(world, site)

    early = collect(world, now=NOW + timedelta(seconds=500))
    closed = collect(world, now=NOW + timedelta(seconds=600))

    assert early is None
    assert closed.accepted == ["a", "b"]


def test_site_that_answers_within_the_grace_time_counts_and_ends_it():
    world = world_of(open_campaign_of(quorum=2, grace_s=60))
    for site in "ab":
        take_part(world, site)
    collect(world, now=NOW)

    take_part(world, "c")
    closed = collect(world, now=NOW + timedelta(seconds=1))

    assert closed.accepted == ["a", "b", "c"]


def test_sites_asked_besides_are_drawn_alike_by_every_coordinator():
    drawn = {
        draw_cohort(Uniform(size=2), order, coins="x/1", over_select=2)
        for order in (list(FIVE), list(reversed(FIVE)))
    }

    ((cohort, wanted),) = drawn
    assert (len(cohort), wanted) == (4, 2)
    assert set(Uniform(size=2).select(FIVE, coins="x/1")) < set(cohort)


def test_every_site_is_asked_besides_equally_often():
    found = Counter(
        site
        for number in range(2000)
        for site in draw_cohort(Uniform(size=1), FIVE, coins=f"d/{number}", over_select=1)[0]
    )

    # Each site is in 2 of 5 places: 800 of 2000, standard deviation 21.9; six of them are 1e-9.
    assert all(abs(count - 800) < 6 * 21.9 for count in found.values())


def test_round_that_asks_more_than_it_wants_closes_at_the_wanted_number():
    world = world_of(open_campaign_of(FIVE, selection=UNIFORM, over_select=2, quorum=2))
    plan = plan_of(world)
    first, second, third, _ = plan.cohort
    take_part(world, first)
    before = collect(world, now=NOW)

    take_part(world, second)
    closed = collect(world, now=NOW)
    take_part(world, third)
    outcome = finish(world)

    assert (len(plan.cohort), plan.wanted) == (4, 2)
    assert before is None
    assert closed.accepted == sorted([first, second])
    assert outcome.contributors == tuple(sorted([first, second]))


def test_none_of_the_accepted_is_left_out_where_more_came_than_were_wanted():
    world = world_of(open_campaign_of(FIVE, selection=UNIFORM, over_select=2))
    for site in plan_of(world).cohort:
        take_part(world, site)

    outcome = finish(world)

    assert outcome.contributors == plan_of(world).cohort


def test_majority_is_of_the_wanted_and_not_of_all_that_are_asked():
    campaign = open_campaign_of(
        FIVE, selection={"kind": "uniform", "params": {"size": 1}}, over_select=4
    )
    world = world_of(campaign)
    take_part(world, "a")

    outcome = finish(world)

    assert (outcome.status, outcome.contributors) == ("released", ("a",))


def test_divisor_of_the_coordinators_noise_counts_all_that_are_asked():
    cohort = {"selection": UNIFORM, "over_select": 2, "deadline_s": 600, "upload_after_s": 60}
    world = world_of(with_noise(campaign_of(sites=FIVE, privacy=CENTRAL, cohort=cohort)))
    plan = plan_of(world)
    asked = plan.cohort[:2]
    for site in asked:
        world.sites[site] = replace(world.sites[site], clock=PLAN_CLOCK)
        take_part(world, site)

    collected = collect(world, now=NOW)
    outcome = release(world, collected)

    # Clip norm 1 over four planned sites, whoever came (McMahan et al. 2018, fixed denominator).
    assert outcome.status == "released"
    assert outcome.contributors == asked
    assert outcome.sensitivity == pytest.approx(1.0 / 4)


PUBLIC_TIME = {"deadline_s": 600, "upload_after_s": 60}


@pytest.mark.parametrize("privacy", [{}, {"privacy": CENTRAL}], ids=["record", "client"])
@pytest.mark.parametrize(
    ("name", "cohort"),
    [("grace_s", {"grace_s": 10}), ("over_select", {"selection": UNIFORM, "over_select": 1})],
)
def test_rule_by_which_speed_decides_is_refused_under_a_guarantee(name, cohort, privacy):
    with pytest.raises(IncompatibleParts, match=f"cohort.{name} lets the speed of a site decide"):
        build_parts(campaign_of(**privacy, cohort=cohort))
    # At one public time of all answers speed says nothing.
    assert build_parts(campaign_of(**privacy, cohort=cohort | PUBLIC_TIME)).selection


@pytest.mark.parametrize(
    ("cohort", "text"),
    [
        ({"over_select": 1}, "1 sites besides the 3 .* the campaign has 0 more"),
        ({"selection": UNIFORM, "over_select": 2}, "2 sites besides the 2 .* has 1 more"),
        ({"selection": UNIFORM, "quorum": 3}, "quorum is 3 and at most 2 sites are asked"),
        ({"selection": UNIFORM, "over_select": 1, "quorum": 3}, "quorum is 3 and at most 2"),
    ],
    ids=["everyone", "too many besides", "quorum", "quorum of those asked besides"],
)
def test_rule_that_cannot_work_is_refused_at_assembly(cohort, text):
    with pytest.raises(IncompatibleParts, match=text):
        build_parts(open_campaign_of(**cohort))


@pytest.mark.parametrize(
    ("cohort", "text"),
    [
        ({"grace_s": 600, "deadline_s": 600}, "grace_s must be shorter"),
        ({"quorum_share": 1.1}, "quorum_share"),
        ({"quorum_share": 0}, "quorum_share"),
        ({"over_select": 0}, "over_select"),
    ],
)
def test_numbers_outside_their_range_are_refused(cohort, text):
    with pytest.raises(ValidationError, match=text):
        open_campaign_of(**cohort)


def test_campaign_that_states_none_of_it_keeps_its_digest():
    # Of the campaign in tests/worlds.py, worked out before these fields were there.
    assert campaign_of().digest == (
        "72b365f60a5cba34718b4c4998503cc3215a20cf3a7718cbdb62c7a17be313e2"
    )


def test_site_that_came_back_is_asked_in_the_next_round_by_itself():
    world = world_of(open_campaign_of(quorum=2))
    for site in "ab":
        take_part(world, site)
    first = finish(world)

    for site in "abc":
        take_part(world, site, 2)
    second = finish(world, 2)

    assert first.contributors == ("a", "b")
    assert second.contributors == ("a", "b", "c")


@pytest.mark.parametrize(
    ("privacy", "expected"),
    [({"privacy": NO_PRIVACY}, "session crashed"), ({}, "")],
    ids=["no guarantee", "record"],
)
def test_missing_site_is_noted_with_what_its_session_looked_like_but_under_dp(privacy, expected):
    world = world_of(campaign_of(**privacy))
    for site in "ab":
        take_part(world, site)
    plan = plan_of(world)

    collected = close_collection(
        world.assembly,
        world.store,
        plan,
        answers=answers_of(world, plan),
        now=AFTER_DEADLINE,
        seen={"c": "session crashed"},
    )

    assert collected.answers["c"].status == "missing"
    assert collected.answers["c"].reason == expected
