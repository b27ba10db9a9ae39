"""SOUNDNESS 11 and 14 where the campaigns' store is restored from an older backup: 11, 14.

The coordinator forgets plans, updates, outcomes and rosters; the sites' ledgers, outboxes and own
witnesses go on. Whatever it opens anew, nobody trains twice for one charge and nothing is charged
twice.
"""

from dataclasses import replace
from datetime import timedelta

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.roster import latest_roster, revoke
from fl_core.errors import LedgerCorrupt, PolicyRefused
from fl_core.privacy.federation import FederationLimits, open_federation
from fl_core.privacy.federation_witness import put_back, witness_federation
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.central_release import Coordinator
from fl_core.rounds.charging import charge_round
from fl_core.rounds.plan import open_round, read_outcome
from fl_core.rounds.release import failed_if_hopeless
from fl_core.rounds.site_round import client_round
from tests.known_updates import client_world
from tests.round_steps import answers_of, collect, finish, release
from tests.snapshots import copy_of
from tests.worlds import NOW, campaign_of, world_of

LATER = NOW + timedelta(days=3)
# A coordinator's limits of tests/worlds.py.
LIMITS = FederationLimits(epsilon=50.0, delta=1e-3)


def answered(world, number, *, sites="abc", now=NOW):
    """Open a round and let sites answer it; return what became of each."""
    plan = open_round(world.assembly, world.store, round_number=number, now=now)
    return {
        name: client_round(
            world.sites[name],
            world.works[name],
            assembly=world.assembly,
            store=world.store,
            plan=plan,
        ).status
        for name in sites
    }


def with_store(world, store):
    """Return the world over another store: the coordinator's, its witness' copies included."""
    sites = {
        name: replace(
            site,
            witnesses=tuple(
                each if each.is_own else WitnessedStore(each.name, store, is_own=False)
                for each in site.witnesses
            ),
        )
        for name, site in world.sites.items()
    }
    return replace(world, store=store, sites=sites)


def trainings(world):
    return {name: work.trainings for name, work in world.works.items()}


def charges(world):
    return {name: len(site.ledger.events()) for name, site in world.sites.items()}


def payloads(world, number):
    stored = (world.store.get(keys.payload("tiny", number, name)) for name in "abc")
    return list(stored)


def test_rule_11_round_that_is_opened_anew_gets_the_same_updates_and_the_same_release():
    world = world_of(campaign_of())
    answered(world, 1)
    finish(world, 1)
    backup = copy_of(world.store)
    answered(world, 2)
    sent, before = payloads(world, 2), finish(world, 2)

    world = with_store(world, backup)
    answered(world, 2, now=LATER)
    after = finish(world, 2)

    assert payloads(world, 2) == sent
    assert after.result_hash == before.result_hash
    assert trainings(world) == dict.fromkeys("abc", 2)
    assert charges(world) == dict.fromkeys("abc", 2)


def test_rule_11_history_that_took_another_turn_counts_no_update_of_the_old_one():
    world = world_of(campaign_of())
    backup = copy_of(world.store)
    for number in (1, 2):
        answered(world, number)
        finish(world, number)

    world = with_store(world, backup)
    # A site is late this time, so the second round begins from another adapter than it did.
    answered(world, 1, sites="ab", now=LATER)
    release(world, collect(world, 1, LATER + timedelta(days=1)))
    again = answered(world, 2, now=LATER)
    plan = open_round(world.assembly, world.store, round_number=2, now=LATER)
    said = {name: each.reason for name, each in answers_of(world, plan).items()}
    finish(world, 2)
    fresh = answered(world, 3, now=LATER)

    assert again == fresh == dict.fromkeys("abc", "uploaded")
    assert said == dict.fromkeys("abc", "base")
    assert finish(world, 3).contributors == ("a", "b", "c")
    assert trainings(world) == dict.fromkeys("abc", 3)
    assert charges(world) == dict.fromkeys("abc", 3)


def test_rule_11_training_that_was_begun_for_a_forgotten_plan_is_not_begun_for_another():
    world = world_of(campaign_of())
    backup = copy_of(world.store)
    world.works["a"].on_train = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        answered(world, 1, sites="a")
    world.works["a"].on_train = lambda: None

    world = with_store(world, backup)
    done = answered(world, 1, sites="a", now=LATER)

    assert done == {"a": "declined"}
    assert trainings(world)["a"] == 1
    assert charges(world)["a"] == 1


def test_rule_14_older_store_gets_back_the_copies_that_it_kept_as_a_witness():
    world = world_of(campaign_of())
    answered(world, 1)
    finish(world, 1)
    backup = copy_of(world.store)
    answered(world, 2)

    world = with_store(world, backup)
    answered(world, 3, now=LATER)

    for name, site in world.sites.items():
        prefix = keys.witness(name, site.policy.dataset, site.policy.unit)
        entries = {seq: world.ledgers[name].get(keys.ledger_entry(seq)) for seq in range(1, 8)}
        held = {seq: backup.get(keys.witnessed_entry(prefix, seq)) for seq in range(1, 8)}
        assert held == entries


def test_site_that_was_revoked_since_the_backup_has_to_be_revoked_again():
    world = world_of(campaign_of())
    backup = copy_of(world.store)
    revoke(world.store, "c", now=NOW, reason="left")

    world = with_store(world, backup)
    forgotten = latest_roster(world.store).entry("c").revoked
    revoke(world.store, "c", now=LATER, reason="left")
    plan = open_round(world.assembly, world.store, round_number=1, now=LATER)

    assert forgotten is None
    assert plan.cohort == ("a", "b")


@pytest.fixture
def central():
    """A world under noise of the coordinator after one round, and what it was then."""
    world = client_world()
    answered(world, 1)
    finish(world, 1)
    return world, copy_of(world.store)


def coordinator_of(world, store):
    return Coordinator(open_federation(store, limits=LIMITS, key=world.coordinator.federation.key))


def test_rule_11_update_without_noise_is_not_sent_again_for_another_plan(central):
    world, backup = central
    answered(world, 2)
    finish(world, 2)

    world = replace(with_store(world, backup), coordinator=coordinator_of(world, backup))
    done = answered(world, 2, now=LATER)

    # The copies of the sites do not hold the second round yet: nobody was asked for a third.
    assert done == dict.fromkeys("abc", "declined")
    assert not [
        key
        for key in backup.list("campaigns/")
        if key.endswith("0002/updates/a/payload.safetensors")
    ]
    assert finish(world, 2).status == "skipped"


def set_back(central):
    """Release a second round, go back to before it, and bring the ledger's entries back."""
    world, backup = central
    copies = MemoryStore()
    answered(world, 2)
    finish(world, 2)
    witness_federation(world.store, copies)
    assert put_back(backup, copies) == 2
    return replace(with_store(world, backup), coordinator=coordinator_of(world, backup))


def test_rule_14_charge_that_the_store_forgot_comes_back_and_pays_for_no_other_plan(central):
    world = set_back(central)
    assembly, store = world.assembly, world.store
    plan = open_round(assembly, store, round_number=2, now=LATER)
    collected = collect(world, 2, LATER + timedelta(days=1))

    with pytest.raises(PolicyRefused), failed_if_hopeless(assembly, store, plan, now=lambda: LATER):
        charge_round(assembly, store, plan, collected=collected, coordinator=world.coordinator)
    answered(world, 3, now=LATER)
    third = release(world, collect(world, 3, LATER + timedelta(days=1)))

    assert read_outcome(store, "tiny", 2).status == "failed"
    assert third.status == "released"
    assert len(world.coordinator.federation.ledger.events()) == 3


def test_rule_11_plan_that_the_older_store_still_has_is_not_drawn_a_second_time(central):
    world = set_back(central)
    # The same plan again, and raw updates that are sent again for it.
    answered(world, 2)
    collected = collect(world, 2)

    assert len(collected.accepted) == 3
    with pytest.raises(LedgerCorrupt, match="nothing is drawn a second time"):
        release(world, collected)

    assert keys.release("tiny", 2) not in world.store.list("campaigns/")
    assert len(world.coordinator.federation.ledger.events()) == 2


def test_ledger_that_was_written_on_after_the_store_was_set_back_is_left_and_refused(central):
    world, backup = central
    copies = MemoryStore()
    answered(world, 2)
    finish(world, 2)
    witness_federation(world.store, copies)
    # A coordinator without its copies opens another round on the older ledger.
    world = replace(with_store(world, backup), coordinator=coordinator_of(world, backup))
    answered(world, 3, now=LATER)
    release(world, collect(world, 3, LATER + timedelta(days=1)))
    before = backup.list(keys.FEDERATION)

    assert put_back(backup, copies) == 0
    assert backup.list(keys.FEDERATION) == before
    with pytest.raises(LedgerCorrupt, match="another one"):
        witness_federation(backup, copies)
