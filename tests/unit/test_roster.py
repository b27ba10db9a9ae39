"""The roster: who is enrolled, in numbered write-once documents."""

from datetime import timedelta

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import (
    RosterEntry,
    enrol,
    latest_roster,
    read_roster,
    revoke,
    rotate,
)
from fl_core.errors import CampaignError
from tests.worlds import NOW

LATER = NOW + timedelta(days=1)
NORTH = RosterEntry(site="north", signing_key="1" * 64, certificate="cert of north", since=NOW)
SOUTH = RosterEntry(site="south", signing_key="2" * 64, certificate="cert of south", since=NOW)
NEXT = NORTH.model_copy(
    update={"signing_key": "3" * 64, "certificate": "next of north", "since": LATER}
)


def enrolled(*entries):
    store = MemoryStore()
    for entry in entries:
        enrol(store, entry)
    return store


def test_enrolling_writes_the_next_roster_and_keeps_the_earlier_one():
    store = enrolled(NORTH, SOUTH)

    assert read_roster(store, 1).entries == (NORTH,)
    assert latest_roster(store).entries == (NORTH, SOUTH)


def test_enrolling_twice_writes_one_roster_and_another_key_is_refused():
    store = enrolled(NORTH)

    enrol(store, NORTH.model_copy(update={"since": LATER}))

    assert store.list(keys.ROSTERS) == [keys.roster(1)]
    with pytest.raises(CampaignError, match="enrolled with another key"):
        enrol(store, NEXT)


def test_same_key_with_another_certificate_takes_the_place_of_the_entry_before_it():
    store = enrolled(NORTH, SOUTH)
    other = NORTH.model_copy(update={"certificate": "another of north", "since": LATER})

    roster = enrol(store, other)

    assert roster.entry("north") == other
    assert [each.revoked for each in roster.history("north")] == [LATER, None]
    assert roster.names() == ("south", "north")


def test_revoked_site_is_out_of_the_next_roster_and_stays_in_the_earlier_one():
    store = enrolled(NORTH, SOUTH)

    roster = revoke(store, "north", now=LATER, reason="laptop stolen")

    assert roster.entry("north") is None
    assert roster.names() == ("south",)
    assert read_roster(store, 2).entry("north") == NORTH
    (kept,) = roster.history("north")
    assert (kept.revoked, kept.reason, kept.withdrawal) == (LATER, "laptop stolen", "revoked")


@pytest.mark.parametrize(
    ("site", "said"), [("nobody", "no site 'nobody'"), ("north", "enrolled any more")]
)
def test_who_is_not_enrolled_cannot_be_revoked(site, said):
    store = enrolled(NORTH)
    revoke(store, "north", now=LATER, reason="left")

    with pytest.raises(CampaignError, match=said):
        revoke(store, site, now=LATER, reason="left")

    assert latest_roster(store).version == 2


def test_revoked_site_comes_back_with_its_last_keys_only_when_a_person_confirms():
    store = enrolled(NORTH)
    revoke(store, "north", now=LATER, reason="left")

    with pytest.raises(CampaignError, match="was revoked on 2026-03-02"):
        enrol(store, NORTH)
    roster = enrol(store, NORTH, is_confirmed=True)

    assert roster.entry("north") == NORTH


def test_lost_key_is_replaced_only_when_a_person_confirms():
    store = enrolled(NORTH)

    roster = enrol(store, NEXT, is_confirmed=True)

    assert roster.entry("north") == NEXT
    assert roster.history("north")[0].reason == "enrolled again"
    assert roster.history("north")[0].withdrawal == "replaced"


def test_rotation_puts_the_next_keys_in_place_and_the_second_time_changes_nothing():
    store = enrolled(NORTH)

    first = rotate(store, NEXT, old_key=NORTH.signing_key)
    again = rotate(store, NEXT, old_key=NORTH.signing_key)

    assert first == again
    assert first.entry("north") == NEXT
    assert first.history("north")[0].withdrawal == "changed"
    assert read_roster(store, 1).entry("north") == NORTH


def test_rotation_of_another_key_or_of_a_revoked_site_is_refused():
    store = enrolled(NORTH)

    with pytest.raises(CampaignError, match="enrolled with another key"):
        rotate(store, NEXT, old_key="9" * 64)
    revoke(store, "north", now=LATER, reason="left")
    with pytest.raises(CampaignError, match="is not enrolled"):
        rotate(store, NEXT, old_key=NORTH.signing_key)


@pytest.mark.parametrize("confirmed", [False, True])
def test_key_that_was_rotated_away_is_never_admitted_again(confirmed):
    store = enrolled(NORTH)
    rotate(store, NEXT, old_key=NORTH.signing_key)

    with pytest.raises(CampaignError, match=r"enrolled with another key|withdrawn"):
        enrol(store, NORTH, is_confirmed=confirmed)
    with pytest.raises(CampaignError, match="certificate of site 'north' was withdrawn"):
        enrol(store, NEXT.model_copy(update={"certificate": NORTH.certificate}))


@pytest.mark.parametrize("field", ["signing_key", "certificate"])
def test_site_cannot_enrol_with_what_is_another_sites(field):
    store = enrolled(NORTH)
    # The certificate is public: whoever names it first would be taken for its owner.
    thief = SOUTH.model_copy(update={field: getattr(NORTH, field)})

    with pytest.raises(CampaignError, match=f"{field.replace('_', ' ')} .* another site's"):
        enrol(store, thief)
    enrol(store, SOUTH)
    with pytest.raises(CampaignError, match="another site's"):
        rotate(store, thief, old_key=SOUTH.signing_key)


@pytest.mark.parametrize(
    ("stated", "signs"),
    [
        ({"identify": "token"}, True),
        ({"identify": "certificate"}, False),
        ({}, False),
        ({"certificate": None}, True),
    ],
    ids=["token", "certificate", "of-before", "of-before-without-certificate"],
)
def test_signing_key_opens_the_gateway_only_where_the_site_stated_it(stated, signs):
    assert NORTH.model_copy(update=stated).signs_requests is signs


def test_two_changes_at_once_become_two_rosters():
    store = enrolled(NORTH)
    inner = store.put_once
    raced = []

    def put_once(key, data):
        if not raced:
            raced.append(key)
            enrol(store, SOUTH)
        return inner(key, data)

    store.put_once = put_once

    roster = revoke(store, "north", now=LATER, reason="left")

    assert roster.version == 3
    assert roster.names() == ("south",)
