"""SOUNDNESS, rules 10 and 14: a site's keys change, and its ledger forgets nothing by it."""

from dataclasses import replace

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.guarantees import SITE
from fl_core.campaign.roster import latest_roster, read_roster
from fl_core.errors import LedgerCorrupt, StoreUnavailable, WitnessUnavailable
from fl_core.privacy.budget import spend
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.ledger_entries import ChainReader, read_ledger
from fl_core.privacy.witness import publish
from fl_core.rounds.site_rotation import hand_over
from fl_core.rounds.site_witness import witness_ledgers
from fl_core.updates.signing import generate_key, public_hex, sign, sign_both
from tests.key_changes import change_keys, copies, own_witness, rotation, true_epsilon
from tests.round_steps import collect, finish
from tests.round_steps import take_part as take_part_of
from tests.snapshots import AwayStore, copy_of, recover, take_part
from tests.told_worlds import check, logged_of, run_world
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


def test_rule_10_what_was_spent_under_the_old_key_is_spent_under_the_next():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)

    change_keys(world)
    take_part(world, world.sites["a"], 2)

    ledger = world.sites["a"].ledger
    # Genesis, reserve and commit of round 1; the change; reserve and commit of round 2.
    kinds = ["genesis", "reserve", "commit", "rotated", "reserve", "commit"]
    assert [entry.kind for entry in ledger.entries()] == kinds
    assert spend(world.sites["a"].policy, ledger.events()).epsilon == true_epsilon(world, 2)
    own = own_witness(world)
    assert len(own.store.list(copies(world))) == len(kinds)


def test_rule_10_whoever_knows_the_key_in_force_can_check_all_of_it_and_the_old_key_cannot():
    world = world_of(campaign_of())
    old = public_hex(world.sites["a"].key)
    take_part(world, world.sites["a"], 1)
    first = change_keys(world)
    take_part(world, world.sites["a"], 2)
    last = change_keys(world)

    chain = read_ledger(world.ledgers["a"], public_hex(last))

    assert chain.signers == (old, public_hex(first), public_hex(last))
    for not_in_force in (old, public_hex(first)):
        with pytest.raises(LedgerCorrupt, match="ledger ends under key"):
            read_ledger(world.ledgers["a"], not_in_force)


def test_rule_10_changing_keys_works_for_the_ledger_of_the_whole_site_too():
    world = world_of(campaign_of(privacy=LOCAL))
    take_part(world, world.sites["a"], 1)

    key = change_keys(world)
    take_part(world, world.sites["a"], 2)

    chain = read_ledger(world.client_ledgers["a"], public_hex(key))
    assert [e.round for e in chain.entries if e.kind == "reserve"] == [1, 2]
    assert chain.entries[0].unit == SITE


def test_rule_10_interrupted_change_is_finished_by_running_it_again():
    world = world_of(campaign_of(privacy=LOCAL))
    take_part(world, world.sites["a"], 1)
    site, key = world.sites["a"], generate_key()
    # The first ledger is handed over, the second is not, and the key on the disk is the old one.
    site.ledger.hand_over(key)

    after = hand_over(site, key)
    again = hand_over(site, key)

    for ledger in (after.ledger, after.client_ledger, again.ledger):
        assert [e.kind for e in ledger.entries()].count("rotated") == 1


def test_rule_14_no_change_of_keys_without_a_witness_of_the_sites_own():
    world = world_of(campaign_of())
    site = world.sites["a"]
    away = AwayStore()
    gone = tuple(replace(w, store=away) if w.is_own else w for w in site.witnesses)

    with pytest.raises(WitnessUnavailable):
        hand_over(replace(site, witnesses=gone), generate_key())

    assert [e.kind for e in site.ledger.entries()] == ["genesis"]


def test_rule_14_entry_of_the_old_key_after_the_change_is_corrupt():
    world = world_of(campaign_of())
    old = world.sites["a"].key
    key = change_keys(world)
    seq, head = world.sites["a"].ledger.head()
    forged = LedgerEntry(
        seq=seq + 1,
        dataset=world.sites["a"].policy.dataset,
        unit="row",
        kind="reserve",
        campaign_digest="c" * 64,
        round=1,
        plan_sha256="a" * 64,
        event=world.assembly.noise.event,
        time=NOW,
        previous_sha256=head,
    )
    world.ledgers["a"].put_once(keys.ledger_entry(seq + 1), to_bytes(sign(forged, old)))

    with pytest.raises(LedgerCorrupt, match=f"entry {seq + 1} is not signed by the site's key"):
        read_ledger(world.ledgers["a"], public_hex(key))


def test_rule_14_folder_from_before_the_change_trains_nothing():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    old, ledger, outbox = world.sites["a"], *map(copy_of, (world.ledgers["a"], world.outboxes["a"]))
    change_keys(world)
    trained = world.works["a"].trainings
    restored = open_site("a", old.key, old.policy, ledger, outbox, witnesses=old.witnesses)

    with pytest.raises(LedgerCorrupt, match="rolled back"):
        take_part(world, restored, 2)

    assert world.works["a"].trainings == trained


def test_rule_14_branch_that_the_old_key_wrote_on_shows_and_is_charged():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    old, before = world.sites["a"], copy_of(world.ledgers["a"])
    change_keys(world)
    take_part(world, world.sites["a"], 2)
    # A folder from before the change trained with a witness that knew nothing of the change.
    forked = Ledger(before, dataset=old.policy.dataset, unit="row", key=old.key)
    forked.reserve(
        campaign_digest=world.assembly.digest,
        round_number=9,
        plan_sha256="9" * 64,
        event=world.assembly.noise.event,
        require=lambda _: None,
    )
    other = replace(own_witness(world), name="other disk", store=MemoryStore())
    publish(forked, [other], owner="a")
    witnesses = (*world.sites["a"].witnesses, other)
    world.sites["a"] = replace(world.sites["a"], witnesses=witnesses)

    with pytest.raises(LedgerCorrupt, match="two different entries"):
        witness_ledgers(world.sites["a"])
    site, _ = recover(world, world.ledgers["a"], world.outboxes["a"])

    witness_ledgers(site)
    assert site.ledger.chain().reserve_of(world.assembly.digest, 9).kind == "recovered"
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 3)


def test_rule_14_nobody_can_put_an_invented_history_under_a_key_that_is_not_theirs():
    world = world_of(campaign_of())
    site, thief = world.sites["a"], generate_key()
    invented = MemoryStore()
    Ledger.create(invented, dataset=site.policy.dataset, unit="row", key=thief, now=NOW)
    head = Ledger(invented, dataset=site.policy.dataset, unit="row", key=thief).head()[1]
    entry = rotation(world, old=thief, new=site.key, previous=head)
    # The thief signs in both places: the site's key never took this ledger over.
    signed = sign_both(entry, old_key=thief, new_key=thief)
    invented.put_once(keys.ledger_entry(2), to_bytes(signed))

    findings = ChainReader(public_hex(site.key)).read(invented).findings

    assert "ledger entry 1 is not signed by the site's key" in findings


@pytest.mark.parametrize(
    "change",
    [
        {"new_key": public_hex(generate_key())},
        {"old_key": public_hex(generate_key())},
        {"old_signature": "0" * 128},
        {"old_signature": None},
        {"time": NOW.replace(year=2027)},
        {"previous_sha256": "f" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rule_14_changed_rotation_does_not_hold(change):
    world = world_of(campaign_of())
    key = change_keys(world)
    entry = world.sites["a"].ledger.entries()[-1]
    tampered = MemoryStore()
    for changed in (world.sites["a"].ledger.entries()[0], entry.model_copy(update=change)):
        tampered.put_once(keys.ledger_entry(changed.seq), to_bytes(changed))

    with pytest.raises(LedgerCorrupt):
        read_ledger(tampered, public_hex(key))


def test_rule_14_recovery_takes_back_entries_of_both_keys():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    change_keys(world)
    take_part(world, world.sites["a"], 2)
    whole = world.sites["a"].ledger.entries()

    site, _ = recover(world, ledger, outbox)

    assert site.ledger.entries() == whole
    assert spend(site.policy, site.ledger.events()).epsilon == true_epsilon(world, 2)


def test_rule_14_recovery_with_the_key_that_was_given_up_is_refused():
    world = world_of(campaign_of())
    old = world.sites["a"]
    ledger, outbox = copy_of(world.ledgers["a"]), copy_of(world.outboxes["a"])
    change_keys(world)
    take_part(world, world.sites["a"], 1)
    world.sites["a"] = replace(old, witnesses=world.sites["a"].witnesses)

    with pytest.raises(LedgerCorrupt, match="handed to another key"):
        recover(world, ledger, outbox)


def test_rule_10_keys_change_in_the_middle_of_a_campaign_and_every_statement_still_holds():
    world = run_world(campaign_of(), rounds=1)
    logged = logged_of(world, 1)
    change_keys(world, "a")
    change_keys(world, "b")
    for site in world.sites:
        take_part_of(world, site, 2)
    finish(world, 2)

    before, after = check(world, logged, number=1), check(world, number=2)

    for verified in (before, after):
        assert verified.broken is None, verified.broken
        (note,) = [c.note for c in verified.checks if "copies" in c.what]
        assert note.startswith("3 of 3 budgets have a copy")


def test_rule_14_update_is_judged_by_the_key_of_its_rounds_roster_and_no_other():
    world = world_of(campaign_of())
    for site in ("a", "b", "c"):
        take_part_of(world, site, 1)
    change_keys(world, "a")
    collected = collect(world, 1)
    finish(world, 1)
    old = world.sites["b"]
    change_keys(world, "b")
    # Site b answers round 2 with the key that it gave up.
    world.sites["b"] = replace(old, ledger=world.sites["b"].ledger)
    for site in ("a", "b", "c"):
        take_part_of(world, site, 2)

    answers = collect(world, 2).answers

    # Round 1 was planned before the change: what the old key signed for it counts.
    assert collected.answers["a"].status == "accepted"
    assert (answers["b"].status, answers["b"].reason) == ("rejected", "signature")
    assert answers["a"].status == answers["c"].status == "accepted"
    assert read_roster(world.store, 3).entry("a") != latest_roster(world.store).entry("a")


def test_rule_11_update_in_the_outbox_is_sent_after_a_change_as_it_was_signed():
    world = world_of(campaign_of())
    inner, cut = world.store.put_once, keys.manifest("tiny", 1, "a")

    def put_once(key, data):
        if key == cut:
            raise StoreUnavailable("the link was cut before the manifest")
        return inner(key, data)

    world.store.put_once = put_once
    with pytest.raises(StoreUnavailable):
        take_part(world, world.sites["a"], 1)
    world.store.put_once = inner

    change_keys(world)
    again = take_part(world, world.sites["a"], 1)
    answers = collect(world, 1).answers

    assert again.status == "uploaded"
    assert answers["a"].status == "accepted"
    assert world.works["a"].trainings == 1
    assert [e.kind for e in world.sites["a"].ledger.entries()].count("reserve") == 1
