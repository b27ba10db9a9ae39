"""What a round asks of the store: nothing per site while it waits, a few reads per answer."""

from collections import Counter

import pytest

from fl_core.rounds.charging import charge_round
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import new_answers
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import release_round
from fl_core.rounds.status import round_status
from tests.round_steps import plan_of, take_part
from tests.worlds import NOW, campaign_of, world_of

SIZES = [2, 5, 50]


class Counting:
    """Passes everything on and counts what is asked of the store."""

    def __init__(self, inner):
        self._inner, self.asked = inner, Counter()

    def __getattr__(self, name):
        def counted(*args, **kwargs):
            self.asked[name] += 1
            return getattr(self._inner, name)(*args, **kwargs)

        return counted


def world_with(sites):
    world = world_of(campaign_of(tuple(f"s{number:02d}" for number in range(sites))))
    return world, Counting(world.store)


@pytest.mark.parametrize("sites", SIZES)
def test_waiting_costs_three_requests_a_look_however_many_sites(sites):
    world, store = world_with(sites)
    plan = plan_of(world)

    answers = new_answers(world.assembly, store, plan, known=())
    frozen = close_collection(world.assembly, store, plan, answers=answers, now=NOW)

    assert (answers, frozen) == ({}, None)
    # One listing for all sites, one of the rosters for those revoked, and one look whether another
    # coordinator has closed the round.
    assert store.asked == {"list": 2, "get": 1}


def requests_of(sites):
    """Return how many requests the coordinator's steps of one round make, by step."""
    world, store = world_with(sites)
    spent, assembly = {}, world.assembly

    def step(name, taken):
        store.asked.clear()
        result = taken()
        spent[name] = store.asked.total()
        return result

    plan = step("open", lambda: open_round(assembly, store, round_number=1, now=NOW))
    for site in plan.cohort:
        take_part(world, site)
    answers = step("collect", lambda: new_answers(assembly, store, plan, known=()))
    collected = step(
        "close", lambda: close_collection(assembly, store, plan, answers=answers, now=NOW)
    )
    charge = step("charge", lambda: charge_round(assembly, store, plan, collected=collected))
    step(
        "release",
        lambda: release_round(assembly, store, plan, collected=collected, charge=charge, now=NOW),
    )
    step("status", lambda: round_status(assembly, store, 1))
    return spent


def test_every_further_site_costs_six_requests_a_round():
    few, many = (requests_of(sites) for sites in (2, 50))

    # Manifest and payload when they come, the manifest for the charge, both for the release, and
    # its budget statement for people.
    growth = {name: (many[name] - few[name]) / 48 for name in few}
    assert growth == {
        "open": 0,
        "collect": 2,
        "close": 0,
        "charge": 1,
        "release": 2,
        "status": 1,
    }
