"""Which campaigns a recovery charges: those that the site agreed to, not all that name it."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import CampaignError, PolicyRefused
from fl_core.privacy.recovery import LostLedger, find_recovery
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.site_recovery import NO_PLAN, Agreed, owed_by_site
from fl_core.updates.outbox import Outbox
from tests.snapshots import take_part
from tests.worlds import NOW, campaign_of, world_of


def world_with(*, made_up):
    """Return a world where site a trained two rounds, and what the coordinator put beside them."""
    world = world_of(campaign_of())
    for number in (1, 2):
        take_part(world, world.sites["a"], number)
    if made_up == "without a guarantee":
        free = open_campaign(
            world.store,
            campaign_of(id="made-up", privacy={"none": {"reason": "all of the rows are public"}}),
        )
        open_round(free, world.store, round_number=1, now=NOW)
    elif made_up == "unreadable":
        world.store.put_once(keys.campaign("made-up"), b"{}")
    return world


def recovery(world, *, said, outbox=None, lost=(4,)):
    """Return what a recovery charges whose ledger lacks entries that no witness holds either."""
    site = world.sites["a"]
    for seq in lost:
        world.ledgers["a"].discard(keys.ledger_entry(seq))
    dataset, unit = site.policy.dataset, site.policy.unit
    owed = owed_by_site(
        world.store, outbox or site.outbox, site="a", dataset=dataset, unit=unit, agreed=said
    )
    ledger = LostLedger("a", dataset, unit, site.key, world.ledgers["a"])
    entry = find_recovery(ledger, [], owed, now=NOW).recovered
    return [] if entry is None else [(c.event.kind, c.round, c.plan_sha256) for c in entry.charges]


@pytest.mark.parametrize("made_up", ["without a guarantee", "unreadable"])
def test_campaign_that_nothing_shows_to_be_approved_is_left_to_a_person(made_up):
    world = world_with(made_up=made_up)

    with pytest.raises(PolicyRefused, match="this site approved made-up,") as refused:
        recovery(world, said=Agreed())

    assert "--never-approved" in refused.value.hint
    assert "--approved" in refused.value.hint


@pytest.mark.parametrize("made_up", ["without a guarantee", "unreadable"])
def test_campaign_that_was_never_approved_is_not_charged(made_up):
    world = world_with(made_up=made_up)

    charged = recovery(world, said=Agreed(never=frozenset({"made-up"})))

    # Entry 4 was the reserve of round 2.
    assert [(kind, number) for kind, number, _ in charged] == [("self_composed", 2)]


def test_campaign_whose_approval_may_be_lost_is_charged():
    world = world_with(made_up="without a guarantee")

    charged = recovery(world, said=Agreed(approved=frozenset({"made-up"})))

    assert {(kind, number) for kind, number, _ in charged} == {
        ("self_composed", 2),
        ("non_private", 1),
    }


def test_campaign_that_may_have_been_approved_and_cannot_be_read_is_refused():
    world = world_with(made_up="unreadable")

    with pytest.raises(CampaignError, match="what its rounds cost is unknown"):
        recovery(world, said=Agreed(approved=frozenset({"made-up"})))


def test_campaign_that_the_ledger_knows_is_charged_whatever_the_operator_says():
    world = world_with(made_up="")

    said = Agreed(never=frozenset({"tiny"}))
    charged = recovery(world, said=said, outbox=Outbox(MemoryStore()))

    assert [(kind, number) for kind, number, _ in charged] == [("self_composed", 2)]


@pytest.mark.parametrize("made_up", ["without a guarantee", "unreadable"])
def test_nothing_is_asked_where_nothing_is_lost(made_up):
    assert recovery(world_with(made_up=made_up), said=Agreed(), lost=()) == []


def test_plan_that_cannot_be_read_is_charged_like_one_that_names_the_site():
    world = world_with(made_up="")
    world.store.put_once(keys.plan("tiny", 3), b"{}")
    world.store.put_once(keys.plan("tiny", 7), b"{}")

    charged = recovery(world, said=Agreed())

    # The campaign has six rounds.
    assert [(number, plan == NO_PLAN) for _, number, plan in charged] == [(2, False), (3, True)]
