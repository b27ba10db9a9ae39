"""SOUNDNESS, rules 10 and 14: a site loses its key, and its ledger forgets nothing by it."""

from dataclasses import replace

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import LedgerCorrupt, WitnessUnavailable
from fl_core.privacy.budget import spend
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.privacy.recovery import Owed, append_missing, charges_of, find_recovery
from fl_core.privacy.witness import ask_witnesses, publish
from fl_core.updates.signing import generate_key, public_hex, sign
from tests.key_changes import change_keys, copies, lost, own_witness, rotation, true_epsilon
from tests.snapshots import AwayStore, copy_of, recover, take_part
from tests.worlds import NOW, campaign_of, open_site, world_of


def test_rule_14_stranger_who_names_a_key_as_lost_stops_nobody():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    site, stranger = world.sites["a"], generate_key()
    seq, head = site.ledger.head()
    lie = rotation(world, old=site.key, new=stranger, seq=seq + 1, previous=head)
    world.store.put_once(
        keys.witnessed_entry(copies(world), seq + 1), to_bytes(sign(lie, stranger))
    )

    take_part(world, site, 2)

    assert world.works["a"].trainings == 2
    verdicts = ask_witnesses(site.ledger, site.ledger.entries(), site.witnesses, owner="a")
    assert [verdict.complaint for verdict in verdicts] == ["", ""]


@pytest.mark.parametrize("stated", ["first", "last"])
def test_rule_10_lost_key_is_followed_by_a_new_one_and_nothing_spent_is_forgotten(stated):
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    # The folder is restored from here, and the key after this one is gone with the disk.
    ledger = copy_of(world.ledgers["a"])
    first = public_hex(world.sites["a"].key)
    last = public_hex(change_keys(world))
    take_part(world, world.sites["a"], 2)
    key = generate_key()
    left = lost(world, key, lost_key={"first": first, "last": last}[stated], ledger_store=ledger)

    found = find_recovery(left, world.sites["a"].witnesses, Owed(), now=NOW)
    append_missing(left, found)

    chain = read_ledger(ledger, public_hex(key))
    assert chain.signers == (first, last, public_hex(key))
    assert found.rotated.old_signature is None
    policy = world.sites["a"].policy
    assert spend(policy, chain.events()).epsilon == true_epsilon(world, 2)
    # Its witnesses take the ledger on, and the second time there is nothing to do.
    after = Ledger(ledger, dataset=policy.dataset, unit="row", key=key)
    publish(after, world.sites["a"].witnesses, owner="a")
    assert not find_recovery(left, world.sites["a"].witnesses, Owed(), now=NOW).is_needed


def test_rule_10_new_key_without_a_word_about_the_old_one_gets_no_ledger():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    stranger = lost(world, generate_key(), lost_key=None, ledger_store=world.ledgers["a"])

    with pytest.raises(LedgerCorrupt, match="lost-key"):
        find_recovery(stranger, world.sites["a"].witnesses, Owed(), now=NOW)


def test_rule_14_gap_and_lost_key_together_are_charged_under_the_new_key():
    world = world_of(campaign_of())
    for number in (1, 2):
        take_part(world, world.sites["a"], number)
    damaged = MemoryStore()
    for seq in (1, 2, 3):
        key = keys.ledger_entry(seq)
        damaged.put_once(key, world.ledgers["a"].get(key))
    site, key = world.sites["a"], generate_key()
    away = replace(own_witness(world), store=AwayStore())
    reserve = site.ledger.chain().reserve_of(world.assembly.digest, 2)
    owed = Owed(plans=charges_of(reserve))
    left = lost(world, key, lost_key=public_hex(site.key), ledger_store=damaged)

    found = find_recovery(left, [away], owed, now=NOW, assume_lost=True)
    append_missing(left, found)

    chain = read_ledger(damaged, public_hex(key))
    assert [entry.kind for entry in chain.entries][-2:] == ["rotated", "recovered"]
    assert spend(site.policy, chain.events()).epsilon == true_epsilon(world, 2)


def test_rule_14_folder_whose_key_was_replaced_as_lost_trains_nothing_and_is_told_why():
    world = world_of(campaign_of())
    take_part(world, world.sites["a"], 1)
    old, ledger = world.sites["a"], copy_of(world.ledgers["a"])
    key = generate_key()
    left = lost(world, key, lost_key=public_hex(old.key), ledger_store=world.ledgers["a"])
    append_missing(left, find_recovery(left, old.witnesses, Owed(), now=NOW))
    after = Ledger(world.ledgers["a"], dataset=old.policy.dataset, unit="row", key=key)
    publish(after, old.witnesses, owner="a")
    # A backup with the key that was thought lost turns up.
    restored = open_site("a", old.key, old.policy, ledger, MemoryStore(), witnesses=old.witnesses)

    trained = world.works["a"].trainings

    with pytest.raises(WitnessUnavailable) as caught:
        take_part(world, restored, 2)
    with pytest.raises(LedgerCorrupt, match="handed to another key"):
        recover(world, ledger, MemoryStore())

    assert "put the newest key.pem back" in caught.value.hint
    assert world.works["a"].trainings == trained
