"""SOUNDNESS, rule 12: a charge is taken back only where nothing was trained, and never will be."""

from dataclasses import replace

import pytest

from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt, WitnessUnavailable
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.rounds.site_witness import void_idle_reserves, witness_ledgers
from fl_core.updates.records import EventRecord
from fl_core.updates.signing import public_hex
from tests.snapshots import AwayStore, close, copy_of, restored, take_part
from tests.worlds import campaign_of, open_site, world_of


def idle_world():
    """Return a world whose site a has charged round 1 and trained nothing for it."""
    world = world_of(campaign_of())
    away = AwayStore()
    away.is_away = False
    coordinator, disk = world.sites["a"].witnesses
    site = replace(world.sites["a"], witnesses=(coordinator, replace(disk, store=away)))
    reserve = site.ledger.reserve

    def reserve_then_lose_the_witness(**fields):
        entry = reserve(**fields)
        away.is_away = True
        return entry

    site.ledger.reserve = reserve_then_lose_the_witness
    with pytest.raises(WitnessUnavailable):
        take_part(world, site)
    away.is_away = False
    return world, restored_with(world, site)


def restored_with(world, site):
    return open_site(
        "a",
        site.key,
        site.policy,
        world.ledgers["a"],
        world.outboxes["a"],
        witnesses=site.witnesses,
    )


def events_of(site) -> list[EventRecord]:
    return site.ledger.events()


def test_rule_12_charge_of_a_closed_round_without_training_is_taken_back():
    world, site = idle_world()
    charged = len(events_of(site))
    close(world)

    voided = void_idle_reserves(site, world.assembly, world.store)

    assert (charged, voided, events_of(site)) == (1, 1, [])
    assert take_part(world, site).status == "declined"
    assert world.works["a"].trainings == 0
    assert ChainReader(public_hex(site.key)).read(world.ledgers["a"]).findings == []
    witness_ledgers(site)


def test_rule_12_open_round_is_not_voided():
    world, site = idle_world()

    voided = void_idle_reserves(site, world.assembly, world.store)

    assert (voided, len(events_of(site))) == (0, 1)
    assert take_part(world, site).status == "uploaded"


def test_rule_12_training_that_was_begun_stays_charged():
    world = world_of(campaign_of())
    world.works["a"].fails_with = ValueError("a row")
    take_part(world, world.sites["a"])
    close(world)

    voided = void_idle_reserves(world.sites["a"], world.assembly, world.store)

    assert (voided, len(events_of(world.sites["a"]))) == (0, 1)


def test_rule_12_rolled_back_outbox_voids_nothing():
    world = world_of(campaign_of())
    snapshots = []
    world.works["a"].on_train = lambda: snapshots.append(copy_of(world.ledgers["a"]))
    take_part(world, world.sites["a"])
    close(world)
    site = restored(world, snapshots[0], MemoryStore())

    with pytest.raises(LedgerCorrupt):
        void_idle_reserves(site, world.assembly, world.store)

    assert len(events_of(site)) == 1
