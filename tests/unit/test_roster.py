"""The roster: who is enrolled, in numbered write-once documents."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import RosterEntry, enrol, latest_roster, read_roster
from fl_core.errors import CampaignError
from tests.worlds import NOW

NORTH = RosterEntry(site="north", signing_key="1" * 64, since=NOW)
SOUTH = RosterEntry(site="south", signing_key="2" * 64, since=NOW)


def test_enrolling_writes_the_next_roster_and_keeps_the_earlier_one():
    store = MemoryStore()

    enrol(store, NORTH)
    enrol(store, SOUTH)

    assert read_roster(store, 1).entries == (NORTH,)
    assert latest_roster(store).entries == (NORTH, SOUTH)


def test_enrolling_twice_writes_one_roster_and_another_key_is_refused():
    store = MemoryStore()
    enrol(store, NORTH)

    enrol(store, NORTH)

    assert store.list(keys.ROSTERS) == [keys.roster(1)]
    with pytest.raises(CampaignError, match="enrolled with another key"):
        enrol(store, NORTH.model_copy(update={"signing_key": "0" * 64}))
