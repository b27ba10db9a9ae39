"""Who takes part changes while a campaign runs: late, with other keys, withdrawn, and back."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import RosterEntry, enrol, latest_roster, revoke, rotate
from fl_core.rounds.site_rotation import hand_over
from fl_core.updates.signing import generate_key, public_hex
from tasks.site_states import Naming, campaigns_of, site_facts, state_of
from tests.round_steps import finish, plan_of, take_part
from tests.told_worlds import check
from tests.worlds import NOW, campaign_of, world_of

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def world():
    """Return a campaign of a, b and c, of whom c has not enrolled yet."""
    made = world_of(campaign_of())
    store = MemoryStore()
    for key in made.store.list(""):
        if key != keys.roster(3):
            store.put_once(key, made.store.get(key))
    # The coordinator's witness is the same store.
    for name, site in made.sites.items():
        moved = tuple(w if w.is_own else replace(w, store=store) for w in site.witnesses)
        made.sites[name] = replace(site, witnesses=moved)
    made.store = store
    return made


def entry_of(world, name, key=None):
    key = world.sites[name].key if key is None else key
    return RosterEntry(site=name, signing_key=public_hex(key), since=LATER)


def play(world, number):
    plan = plan_of(world, number)
    for site in plan.cohort:
        assert take_part(world, site, number).status == "uploaded"
    return plan, finish(world, number)


def test_site_that_the_campaign_names_enrols_late_and_joins_the_next_round(world):
    first, _ = play(world, 1)

    enrol(world.store, entry_of(world, "c"))
    second, outcome = play(world, 2)

    assert (first.cohort, second.cohort) == (("a", "b"), ("a", "b", "c"))
    assert outcome.contributors == ("a", "b", "c")
    assert check(world, number=2).broken is None


def test_one_campaign_goes_on_over_a_late_site_other_keys_and_a_withdrawal(world):
    digest = world.assembly.digest
    play(world, 1)
    enrol(world.store, entry_of(world, "c"))
    key = generate_key()
    rotate(world.store, entry_of(world, "a", key), old_key=public_hex(world.sites["a"].key))
    world.sites["a"] = hand_over(world.sites["a"], key)
    second, _ = play(world, 2)
    revoke(world.store, "b", now=LATER, reason="left")
    third, _ = play(world, 3)
    enrol(world.store, entry_of(world, "b"), is_confirmed=True)
    fourth, outcome = play(world, 4)

    cohorts = [plan.cohort for plan in (second, third, fourth)]
    assert cohorts == [("a", "b", "c"), ("a", "c"), ("a", "b", "c")]
    assert outcome.status == "released"
    assert {plan_of(world, n).campaign_digest for n in (1, 2, 3, 4)} == {digest}
    for number in (1, 2, 3, 4):
        assert check(world, number=number).broken is None


def test_table_counts_rounds_asked_and_answered_and_names_what_waits(world):
    play(world, 1)
    enrol(world.store, entry_of(world, "c"))
    plan_of(world, 2)
    take_part(world, "a", 2)

    facts = {each.entry.site: each for each in site_facts(world.store)}

    assert {s: (f.answered, f.asked) for s, f in facts.items()} == {
        "a": (2, 2),
        "b": (1, 2),
        "c": (0, 1),
    }
    assert {s: f.due for s, f in facts.items()} == {"a": (), "b": ("tiny/2",), "c": ("tiny/2",)}


@pytest.mark.parametrize(
    ("site", "campaign", "is_online", "state"),
    [
        ("a", None, True, "idle"),
        ("a", "tiny", True, "in session of tiny"),
        ("b", "tiny", True, "training due in tiny/2"),
        ("b", None, False, "away, tiny/2 waits"),
        ("a", None, False, "away"),
        ("a", None, None, "unknown"),
        ("b", None, None, "training due in tiny/2"),
    ],
)
def test_state_says_the_first_thing_that_somebody_has_to_know(
    world, site, campaign, is_online, state
):
    play(world, 1)
    plan_of(world, 2)
    take_part(world, "a", 2)
    facts = next(each for each in site_facts(world.store) if each.entry.site == site)

    assert state_of(facts, campaign=campaign, is_online=is_online) == state


def test_revoked_site_is_listed_as_revoked_whatever_else_is_true(world):
    plan_of(world, 1)
    revoke(world.store, "a", now=LATER, reason="left")

    facts = next(each for each in site_facts(world.store) if each.entry.site == "a")

    assert state_of(facts, campaign="tiny", is_online=True) == "revoked"
    assert latest_roster(world.store).names() == ("b",)


def test_campaigns_that_a_late_site_joins_are_those_that_name_it_and_go_on(world):
    assert campaigns_of(world.store, "c") == Naming(("tiny",), (), {})
    assert campaigns_of(world.store, "stranger") == Naming((), ("tiny",), {})
    for number in range(1, 7):
        play(world, number)

    # Six rounds are all of this campaign.
    assert campaigns_of(world.store, "c") == Naming((), (), {})


def test_campaign_that_cannot_be_assembled_here_is_named_and_hides_no_other(world):
    plain = json.loads(to_bytes(campaign_of(id="elsewhere")))
    plain["aggregation"]["kind"] = "of-another-package"
    world.store.put_once(keys.campaign("elsewhere"), json.dumps(plain).encode())
    world.store.put_once(keys.campaign("old"), b'{"id": "old"}')

    found = campaigns_of(world.store, "c")

    assert found.named == ("tiny",)
    assert set(found.unjudged) == {"elsewhere", "old"}
    assert "of-another-package" in found.unjudged["elsewhere"]
