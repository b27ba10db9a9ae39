"""Each kind of signed document, changed in the store, is named by the check that must find it."""

import json

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.campaign.roster import Roster
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.ledger import Ledger
from fl_core.rounds.documents import Collected, Outcome, RoundCharge, RoundPlan
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.records import (
    BudgetStatement,
    GaussianEvent,
    PoissonEvent,
    SelfComposedEvent,
)
from fl_core.updates.signing import sign
from tests.round_steps import finish, take_part
from tests.told_worlds import ROUND, apart, check, client_campaign, logged_of, run_world
from tests.worlds import campaign_of, world_of


@pytest.fixture(scope="module")
def finished():
    return run_world(campaign_of())


@pytest.fixture
def world(finished):
    return apart(finished)


def replace(world, key, model, **changes):
    document = from_bytes(model, world.store.get(key), what=key)
    world.store._objects[key] = to_bytes(document.model_copy(update=changes))
    return document


def step(count):
    poisson = PoissonEvent(sampling_rate=0.1, event=GaussianEvent(noise_multiplier=0.8))
    return SelfComposedEvent(event=poisson, count=count)


def tamper_charge(world):
    key = keys.charge("tiny", 1)
    charge = from_bytes(RoundCharge, world.store.get(key), what=key)
    sites = charge.sites | {"a": charge.sites["a"].model_copy(update={"event": step(1)})}
    world.store._objects[key] = to_bytes(charge.model_copy(update={"sites": sites}))


def drop_a_charge(world):
    key = keys.charge("tiny", 2)
    charge = from_bytes(RoundCharge, world.store.get(key), what=key)
    sites = {site: each for site, each in charge.sites.items() if site != "b"}
    world.store._objects[key] = to_bytes(charge.model_copy(update={"sites": sites}))


def tamper_adapter(world):
    outcome = from_bytes(Outcome, world.store.get(keys.outcome("tiny", 2)), what="outcome")
    key = keys.adapter("tiny", outcome.result_hash) + keys.ADAPTER_FILE
    world.store._objects[key] = world.store.get(key)[:-1] + b"\x00"


def other_key(world):
    roster = world.store.list(keys.ROSTERS)[-1]
    document = from_bytes(Roster, world.store.get(roster), what=roster)
    first, *others = document.entries
    stranger = first.model_copy(update={"signing_key": others[0].signing_key})
    world.store._objects[roster] = to_bytes(
        document.model_copy(update={"entries": (stranger, *others)})
    )


PLAN, MANIFEST = keys.plan("tiny", 2), keys.manifest("tiny", 2, "a")
TAMPERINGS = {
    "plan-campaign": (
        lambda w: replace(w, PLAN, RoundPlan, campaign_digest="f" * 64), "campaign and plans",
    ),
    "plan-base": (lambda w: replace(w, PLAN, RoundPlan, base_hash="f" * 64), "campaign and plans"),
    "plan-round": (lambda w: replace(w, PLAN, RoundPlan, round=1), "campaign and plans"),
    "plan-stranger": (lambda w: replace(w, PLAN, RoundPlan, cohort=("z",)), "campaign and plans"),
    "plan-gone": (lambda w: w.store._objects.pop(PLAN), "campaign and plans"),
    "outcome-base": (
        lambda w: replace(w, keys.outcome("tiny", 1), Outcome, result_hash="e" * 64),
        "campaign and plans",
    ),
    "outcome-sites": (
        lambda w: replace(w, keys.outcome("tiny", 2), Outcome, contributors=("a",)),
        "signed manifests",
    ),
    "manifest-steps": (
        lambda w: replace(w, MANIFEST, UpdateManifest, local_steps=1), "signed manifests",
    ),
    "manifest-signature": (
        lambda w: replace(w, MANIFEST, UpdateManifest, signature="0" * 128), "signed manifests",
    ),
    "manifest-gone": (lambda w: w.store._objects.pop(MANIFEST), "signed manifests"),
    "collected": (
        lambda w: replace(w, keys.collected("tiny", 1), Collected, answers={}), "signed manifests",
    ),
    "roster-key": (other_key, "signed manifests"),
    "charge-event": (tamper_charge, "charges against the campaign's noise"),
    "charge-dropped": (drop_a_charge, "charges against the campaign's noise"),
    "charge-gone": (
        lambda w: w.store._objects.pop(keys.charge("tiny", 1)),
        "charges against the campaign's noise",
    ),
    "adapter-file": (tamper_adapter, "adapter"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "named"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_document_that_was_changed_in_the_store_is_named(world, tamper, named):
    logged = logged_of(world)
    tamper(world)

    broken = check(world, logged).broken

    assert broken.what == named


def resign(world, site, **changes):
    """A site states something else, and signs it."""
    key = keys.budget("tiny", ROUND, site)
    document = from_bytes(BudgetStatement, world.store.get(key), what=key)
    lie = sign(document.model_copy(update=changes), world.sites[site].key)
    world.store._objects[key] = to_bytes(lie)


def fewer(count, **more):
    """A consistent lie: so many steps, and the epsilon that they come to."""
    return {"events": (step(count),), "epsilon": epsilon([step(count)], delta=1e-5)} | more


@pytest.mark.parametrize(
    ("changes", "named", "said"),
    [
        ({"epsilon": 0.5}, "budgets against their own events", "its own events come to"),
        ({"accountant": "rdp"}, "budgets against their own events", "rdp decided"),
        ({"terms": None}, "budgets against their own events", "no terms"),
        ({"rounds_left": 9}, "budgets against their own events", "9 rounds left, it has 4"),
        (fewer(8), "budgets against their own events", "leaves out events"),
        ({"ledger_seq": 2}, "budgets against their own events", "covers its ledger to entry 2"),
        (
            fewer(24, rounds_left=3),
            "budgets against copies of the ledgers",
            "other events than its own",
        ),
        (
            {"ledger_head_sha256": "d" * 64},
            "budgets against copies of the ledgers",
            "another entry",
        ),
    ],
    ids=["epsilon", "accountant", "terms", "rounds", "fewer", "older", "more", "head"],
)
def test_lie_that_a_site_signed_is_named(world, changes, named, said):
    resign(world, "b", **changes)

    broken = check(world).broken

    assert broken.what == named
    assert "'b'" in broken.complaint
    assert said in broken.complaint


def test_site_that_leaves_out_an_earlier_campaign_contradicts_its_witnessed_ledger():
    world = world_of(campaign_of())
    site = world.sites["c"]
    site.ledger.reserve(
        campaign_digest="e" * 64,
        round_number=1,
        plan_sha256="a" * 64,
        event=step(16),
        require=lambda _events: None,
    )
    for number in (1, 2):
        for name in world.sites:
            take_part(world, name, number)
        finish(world, number)
    honest = check(world)

    resign(world, "c", **fewer(16, rounds_left=4))

    broken = check(world).broken
    assert honest.broken is None
    assert broken.what == "budgets against copies of the ledgers"
    assert "'c'" in broken.complaint


@pytest.mark.parametrize(
    "changes", [{"epsilon": 0.1}, {"signature": ""}, {"round": 1}], ids=["figure", "none", "round"]
)
def test_statement_that_its_site_did_not_sign_is_named(world, changes):
    replace(world, keys.budget("tiny", ROUND, "a"), BudgetStatement, **changes)

    broken = check(world).broken

    assert broken.what == "budgets against their own events"
    assert "'a' does not count" in broken.complaint


# --- Central whole-site noise: the federation's ledger.


@pytest.fixture(scope="module")
def central():
    return run_world(client_campaign("gaussian"))


def tampered(central, key, data):
    world = apart(central)
    world.store._objects[key] = data
    return world


def test_release_that_is_not_on_the_federations_ledger_is_named(central):
    key = keys.charge("tiny", 2)
    charge = from_bytes(RoundCharge, central.store.get(key), what=key)
    seq = charge.federation.ledger_seq
    other = charge.federation.model_copy(update={"ledger_seq": seq + 7})
    world = tampered(central, key, to_bytes(charge.model_copy(update={"federation": other})))

    broken = check(world).broken

    assert broken.what == "the federation's ledger"
    assert "round 2" in broken.complaint


def test_raw_update_that_is_still_there_is_named(central):
    world = tampered(central, keys.payload("tiny", 1, "b"), b"an update that was copied back")

    broken = check(world).broken

    assert broken.what == "un-noised updates are gone"
    assert "['b']" in broken.complaint


def test_changed_entry_of_the_federations_ledger_is_named(central):
    (last, *_) = sorted(central.store.list(keys.FEDERATION + keys.LEDGER), reverse=True)
    entry = json.loads(central.store.get(last))
    entry["time"] = "2026-03-02T12:00:00Z"
    world = tampered(central, last, json.dumps(entry, sort_keys=True).encode())

    broken = check(world).broken

    assert broken.what == "the federation's ledger"


def test_federation_that_states_less_than_its_ledger_holds_is_named(central):
    key = keys.federation_budget("tiny", 2)
    statement = from_bytes(BudgetStatement, central.store.get(key), what=key)
    one = GaussianEvent(noise_multiplier=1.0)
    lie = statement.model_copy(
        update={"events": (one,), "epsilon": epsilon([one], delta=1e-3, accountant="gdp")}
    )
    ledger: Ledger = central.coordinator.federation.ledger
    signed = sign(lie, central.coordinator.federation.key)
    world = tampered(central, key, to_bytes(signed))

    broken = check(world).broken

    assert len(ledger.events()) == 2
    assert broken.what == "the federation's ledger"
    assert "other events than its ledger" in broken.complaint
