"""SOUNDNESS, rules 11 and 14: rollbacks show, and a recovery charges what was forgotten."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.guarantees import SITE
from fl_core.errors import LedgerCorrupt, WitnessUnavailable
from fl_core.privacy.budget import spend
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_charge import reserve_round
from fl_core.rounds.site_witness import void_idle_reserves, witness_ledgers
from fl_core.updates.signing import generate_key, sign
from tests.snapshots import AwayStore, close, copy_of, recover, restored, take_part
from tests.worlds import NOW, campaign_of, open_site, world_of

LOCAL = {
    "client": {
        "epsilon": 8.0,
        "delta": 1e-2,
        "clip_norm": 1.0,
        "mechanism": "local_gaussian",
        "noise_multiplier": 4.0,
    }
}


def true_epsilon(world, n_draws):
    site = world.sites["a"]
    return spend(site.policy, [world.assembly.noise.event] * n_draws).epsilon


def test_rule_14_snapshot_round_restore_round_is_refused():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 2)
    site = restored(world, ledger, outbox)
    trained = world.works["a"].trainings
    before = ledger.list("")

    with pytest.raises(LedgerCorrupt, match="rolled back") as caught:
        take_part(world, site, 3)

    assert "ledger recover" in caught.value.hint
    assert world.works["a"].trainings == trained
    # Nothing was written on the branch that is to be given up.
    assert ledger.list("") == before


def test_rule_14_recover_takes_back_what_witnesses_hold_and_then_the_round_is_right():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 2)

    site, recovered = recover(world, ledger, outbox)
    take_part(world, site, 3)

    assert recovered.get(keys.ledger_entry(5)) == world.ledgers["a"].get(keys.ledger_entry(5))
    assert "recovered" not in [entry.kind for entry in site.ledger.entries()]
    assert world.works["a"].trainings == 3
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 3)


def test_rule_14_lost_round_is_not_trained_a_second_time_after_recovery():
    world = world_of(campaign_of())
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 1)
    uploaded = world.store.get(keys.payload("tiny", 1, "a"))

    site, _ = recover(world, ledger, outbox)
    again = take_part(world, site, 1)

    assert (again.status, again.reason) == ("declined", "no_update")
    assert world.works["a"].trainings == 1
    assert world.store.get(keys.payload("tiny", 1, "a")) == uploaded


def test_rule_14_snapshot_between_charge_and_training_shows_by_its_commit():
    world = world_of(campaign_of())
    snapshots = []
    world.works["a"].on_train = lambda: snapshots.append(
        (copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"]))
    )
    take_part(world, world.sites["a"], 1)
    site = restored(world, *snapshots[0])

    with pytest.raises(LedgerCorrupt):
        take_part(world, site, 1)

    assert world.works["a"].trainings == 1


def test_rule_14_gap_that_nobody_holds_is_charged_as_every_plan_that_names_the_site():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 2)
    take_part(world, world.sites["a"], 3)
    prefix = keys.witness("a", world.sites["a"].policy.dataset, "row")
    # Round 2's charge, entry 4, is gone everywhere; its commit and round 3 are held.
    lossy = tuple(
        replace(witness, store=_without(witness.store, keys.witnessed_entry(prefix, 4)))
        for witness in world.sites["a"].witnesses
    )
    world.sites["a"] = replace(world.sites["a"], witnesses=lossy)

    site, _ = recover(world, ledger, outbox)
    take_part(world, site, 4)

    (entry,) = [entry for entry in site.ledger.entries() if entry.kind == "recovered"]
    assert [(lost.first, lost.last) for lost in entry.lost] == [(4, 4)]
    assert [charge.round for charge in entry.charges] == [2]
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 4)


def _without(store, lost):
    kept = MemoryStore()
    for key in store.list(""):
        if key != lost:
            kept.put_once(key, store.get(key))
    return kept


def test_rule_14_with_no_witness_left_all_plans_are_charged_only_when_told_so():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 2)
    gone = replace(world.sites["a"].witnesses[1], store=AwayStore())
    world.sites["a"] = replace(world.sites["a"], witnesses=(gone,))

    with pytest.raises(WitnessUnavailable, match="disk"):
        recover(world, ledger, outbox)
    site, _ = recover(world, ledger, outbox, assume_lost=True)

    (entry,) = [entry for entry in site.ledger.entries() if entry.kind == "recovered"]
    assert [charge.round for charge in entry.charges] == [2]
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 2)


def test_rule_14_witness_that_comes_back_after_an_assumed_loss_is_no_fork():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 2)
    whole = world.sites["a"].witnesses
    world.sites["a"] = replace(world.sites["a"], witnesses=(replace(whole[1], store=AwayStore()),))
    site, store = recover(world, ledger, outbox, assume_lost=True)
    site = replace(site, witnesses=whole)

    take_part(world, site, 3)

    assert world.works["a"].trainings == 3
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 3)
    world.sites["a"] = replace(world.sites["a"], witnesses=whole)
    again, _ = recover(world, store, outbox)
    assert len(again.ledger.entries()) == len(site.ledger.entries())


def test_rule_14_two_branches_that_both_trained_are_both_charged():
    world = world_of(campaign_of())
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"], 1)
    take_part(world, world.sites["a"], 2)
    # The operator restores and swaps the witnesses for new ones, so that nothing shows; later the
    # old ones are found again.
    fresh = restored(world, ledger, outbox)
    fresh = open_site("a", fresh.key, fresh.policy, ledger, outbox)
    later = Ledger(
        ledger,
        dataset=fresh.policy.dataset,
        unit=fresh.policy.unit,
        key=fresh.key,
        clock=lambda: NOW + timedelta(hours=1),
    )
    take_part(world, replace(fresh, ledger=later), 1)
    both = (*world.sites["a"].witnesses, *fresh.witnesses)
    world.sites["a"] = replace(world.sites["a"], witnesses=both)
    with pytest.raises(LedgerCorrupt):
        take_part(world, replace(fresh, witnesses=both), 3)

    site, _ = recover(world, ledger, outbox)
    take_part(world, site, 3)

    # Three draws left before, one after: round 1 twice, round 2, round 3.
    assert world.works["a"].trainings == 4
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 4)


def test_rule_14_charge_taken_back_on_one_branch_and_trained_for_on_the_other_is_charged():
    world = world_of(campaign_of())
    disk, bucket = AwayStore(), AwayStore()
    disk.is_away = bucket.is_away = False
    witnesses = tuple(
        WitnessedStore(name, store, is_own=True)
        for name, store in (("disk", disk), ("bucket", bucket))
    )
    whole = world.sites["a"] = replace(world.sites["a"], witnesses=witnesses)
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    reserve_round(whole, world.assembly, plan, plan_sha256=document_sha256(plan))
    witness_ledgers(whole)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    world.works["a"].on_train = lambda: setattr(bucket, "is_away", True)
    take_part(world, whole, 1)
    close(world, 1)
    # Set back to before the training; only the witness that missed its commit is reachable.
    bucket.is_away, disk.is_away = False, True
    site = restored(world, ledger, outbox)
    assert void_idle_reserves(site, world.assembly, world.store) == 1
    witness_ledgers(site)
    assert site.ledger.events() == []
    disk.is_away = False

    site, store = recover(world, ledger, outbox)
    again, _ = recover(world, store, outbox)

    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 1)
    assert again.ledger.entries() == site.ledger.entries()


def test_rule_14_committed_exchange_without_its_charge_is_charged():
    world = world_of(campaign_of())
    ledger = copy_of(world.ledgers["a"])
    take_part(world, world.sites["a"], 1)
    # Only the ledger was set back, and all its witnesses lost the entries as well.
    fresh = open_site("a", world.sites["a"].key, world.sites["a"].policy, ledger, MemoryStore())
    world.sites["a"] = replace(world.sites["a"], witnesses=fresh.witnesses)
    with pytest.raises(LedgerCorrupt, match="not on the"):
        take_part(world, restored(world, ledger, world.outboxes["a"]), 1)

    site, _ = recover(world, ledger, world.outboxes["a"])
    result = take_part(world, site, 1)

    assert result.status == "uploaded"
    assert world.works["a"].trainings == 1
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 1)


def test_rule_14_committed_exchange_is_charged_though_its_plan_was_removed():
    world = world_of(campaign_of())
    ledger = copy_of(world.ledgers["a"])
    take_part(world, world.sites["a"], 1)
    take_part(world, world.sites["a"], 2)
    # Ledger and witnesses forgot all, and the coordinator hides that there was a second round.
    fresh = open_site("a", world.sites["a"].key, world.sites["a"].policy, ledger, MemoryStore())
    world.sites["a"] = replace(world.sites["a"], witnesses=fresh.witnesses)
    world.store.discard(keys.plan("tiny", 2))

    site, _ = recover(world, ledger, world.outboxes["a"])

    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 2)


def test_rule_14_no_training_without_a_witness_of_the_sites_own():
    world = world_of(campaign_of())
    away = AwayStore()
    coordinator, disk = world.sites["a"].witnesses
    site = replace(world.sites["a"], witnesses=(coordinator, replace(disk, store=away)))

    with pytest.raises(WitnessUnavailable):
        take_part(world, site)
    charged_while_away = len(site.ledger.events())
    away.is_away = False
    result = take_part(world, site)

    assert (charged_while_away, world.works["a"].trainings) == (0, 1)
    assert result.status == "uploaded"


def test_rule_14_witness_knows_the_charge_before_training_begins():
    world = world_of(campaign_of())
    site = world.sites["a"]
    prefix = keys.witness("a", site.policy.dataset, "row")
    seen = []
    world.works["a"].on_train = lambda: seen.extend(
        len(witness.store.list(prefix)) for witness in site.witnesses
    )

    take_part(world, site)

    # Genesis and reserve; the commit follows.
    assert seen == [2, 2]
    assert [len(w.store.list(prefix)) for w in site.witnesses] == [3, 3]


def test_rule_14_site_without_witnesses_declines_what_promises_something():
    world = world_of(campaign_of())
    lone = replace(world.sites["a"], witnesses=world.sites["a"].witnesses[:1])

    result = take_part(world, lone)

    assert (result.status, result.reason) == ("declined", "policy")
    assert "witness" in result.detail
    assert lone.ledger.events() == []


@pytest.mark.parametrize("lie", ["unsigned", "other key", "garbage", "higher and unsigned"])
def test_rule_14_coordinator_that_lies_as_a_witness_stops_nobody(lie):
    world = world_of(campaign_of())
    site = world.sites["a"]
    prefix = keys.witness("a", site.policy.dataset, "row")
    entry = site.ledger.entries()[0].model_copy(update={"time": NOW.replace(year=2027)})
    forged = {
        "unsigned": (1, to_bytes(entry.model_copy(update={"signature": ""}))),
        "other key": (1, to_bytes(sign(entry, generate_key()))),
        "garbage": (1, b"{"),
        "higher and unsigned": (7, to_bytes(entry.model_copy(update={"seq": 7}))),
    }
    seq, data = forged[lie]
    assert site.witnesses[0].store.put_once(keys.witnessed_entry(prefix, seq), data)

    result = take_part(world, site)

    assert result.status == "uploaded"


def test_rule_14_holds_for_the_ledger_of_the_whole_site_too():
    world = world_of(campaign_of(privacy=LOCAL))
    snapshot = copy_of(world.client_ledgers["a"])
    take_part(world, world.sites["a"], 1)
    old = world.sites["a"]
    client = Ledger(snapshot, dataset=old.policy.dataset, unit=SITE, key=old.key, clock=lambda: NOW)

    with pytest.raises(LedgerCorrupt, match="rolled back"):
        take_part(world, replace(old, client_ledger=client), 2)


def test_rule_11_outbox_set_back_alone_does_not_train_again():
    world = world_of(campaign_of())
    outbox = copy_of(world.outboxes["a"])
    take_part(world, world.sites["a"])

    with pytest.raises(LedgerCorrupt, match="older outbox"):
        take_part(world, restored(world, world.ledgers["a"], outbox))

    assert world.works["a"].trainings == 1
