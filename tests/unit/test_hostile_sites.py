"""A site that cheats: whatever it signs, writes or removes, rounds go on without it."""

import json

import numpy as np
import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, read_document, sha256_hex, to_bytes
from fl_core.errors import ObjectCorrupt
from fl_core.privacy.statement import privacy_statement
from fl_core.rounds.adapters import read_adapter
from fl_core.rounds.charging import read_budgets
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Collected, SiteAnswer
from fl_core.rounds.plan import available_sites
from fl_core.rounds.status import campaign_status, next_round, round_numbers
from fl_core.updates.manifest import Declined, UpdateManifest
from fl_core.updates.payload import encode_tensors
from fl_core.updates.records import BudgetStatement
from fl_core.updates.signing import sign
from tests.round_steps import collect, plan_of, release, take_part
from tests.worlds import World, campaign_of, world_of


def forged_collected() -> bytes:
    spent = SiteAnswer(status="declined", reason="budget")
    return to_bytes(Collected(round=1, answers={"b": spent, "c": spent}, has_quorum=False))


# What the stack's rights let site a write: campaigns/*/rounds/*/updates/a/*, where a star of
# SeaweedFS stands for slashes as well.
STRAYS = {
    "own folder of a round": "campaigns/tiny/rounds/0001/updates/a/{}",
    "deeper in its own folder": "campaigns/tiny/rounds/0001/updates/a/deep/{}",
    "round that is not there": "campaigns/tiny/rounds/9999/updates/a/{}",
    "round that is no number": "campaigns/tiny/rounds/x/updates/a/{}",
    "another site's folder": "campaigns/tiny/rounds/0001/updates/b/updates/a/{}",
}


@pytest.mark.parametrize("place", STRAYS.values(), ids=STRAYS)
def test_plan_and_collection_that_a_site_writes_count_for_nothing(place):
    world = world_of(campaign_of())
    plan = plan_of(world)
    world.store.put_once(place.format("plan.json"), to_bytes(plan))
    world.store.put_once(place.format("collected.json"), forged_collected())

    assert round_numbers(world.store, "tiny") == [1]
    assert next_round(world.assembly, world.store) == 1
    assert available_sites(world.assembly, world.store) == ["a", "b", "c"]
    assert len(campaign_status(world.assembly, world.store).rounds) == 1


def test_file_that_a_site_adds_below_an_adapter_is_not_part_of_it():
    world = world_of(campaign_of())
    base_hash = plan_of(world).base_hash
    honest = read_adapter(world.store, "tiny", base_hash)
    stray = keys.adapter("tiny", base_hash) + "rounds/0001/updates/a/x"
    world.store.put_once(stray, b"not an adapter's file")

    assert read_adapter(world.store, "tiny", base_hash) == honest
    assert take_part(world, "b").status == "uploaded"


def forge(world: World, site: str, number: int = 1, *, payload: bytes = b"", **changes) -> None:
    """Replace what a site sent by what it signs instead, as its rights allow."""
    manifest = read_document(world.store, keys.manifest("tiny", number, site), UpdateManifest)
    if payload:
        changes |= {"payload_sha256": sha256_hex(payload), "payload_bytes": len(payload)}
        world.store._objects[keys.payload("tiny", number, site)] = payload
    forged = sign(manifest.model_copy(update=changes), world.sites[site].key)
    world.store._objects[keys.manifest("tiny", number, site)] = to_bytes(forged)


def full_of(world: World, value: float) -> bytes:
    shapes = world.assembly.shapes(1).items()
    return encode_tensors({name: np.full(shape, value, dtype=np.float32) for name, shape in shapes})


def test_stated_norm_bound_is_refused_where_nobody_enforces_one():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    forge(world, "a", norm_bound=1e308)

    answers = collect(world).answers

    assert (answers["a"].status, answers["a"].reason) == ("rejected", "norm")
    assert release(world, collect(world)).contributors == ("b", "c")


def test_updates_that_leave_float32_close_the_round_as_failed_and_the_next_one_runs():
    world = world_of(campaign_of())
    largest = float(np.finfo(np.float32).max)
    for number in (1, 2):
        for site in "abc":
            take_part(world, site, number)
            forge(world, site, number, payload=full_of(world, largest))
        outcome = release(world, collect(world, number))

    assert (outcome.status, outcome.result_hash) == ("failed", None)
    assert next_round(world.assembly, world.store) == 3
    assert plan_of(world, 3).base_hash == outcome.base_hash


@pytest.mark.parametrize("name", ["manifest.json", "payload.safetensors"])
def test_update_removed_after_it_was_accepted_closes_the_round_as_failed(name):
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    collected = collect(world)
    del world.store._objects[keys.update_prefix("tiny", 1, "a") + name]

    outcome = release(world, collected)

    assert outcome.status == "failed"
    assert "'a'" in outcome.reason
    assert next_round(world.assembly, world.store) == 2


def test_update_replaced_after_it_was_accepted_is_not_released():
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    collected = collect(world)
    forge(world, "a", payload=full_of(world, 1.0))

    outcome = release(world, collected)

    assert outcome.status == "failed"
    assert next_round(world.assembly, world.store) == 2


# Each of these stopped the log of rounds, and with it every later run of the campaign.
LIES = {
    "no entry": {"ledger_seq": 0},
    "endless ledger": {"ledger_seq": 10**400},
    "endless rounds": {"rounds_left": 10**400},
    "huge epsilon": {"epsilon": 1e308},
    "huge limit": {"epsilon_limit": 1e308},
    "a page as the unit": {"unit": "row\n# all clear\n" * 1000},
    "a page as the dataset": {"dataset": "rows\n# all clear\n"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_budget_statement_beyond_reason_counts_as_not_stated(lie):
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    key = keys.budget("tiny", 1, "a")
    honest = read_document(world.store, key, BudgetStatement)
    signed = sign(honest.model_copy(update=lie), world.sites["a"].key)
    world.store._objects[key] = to_bytes(signed)

    collected = collect(world)
    budgets = read_budgets(world.assembly, world.store, plan_of(world), collected=collected)
    statement = privacy_statement(world.assembly.campaign, budgets=budgets, round_number=1)

    assert collected.accepted == ["a", "b", "c"]
    assert statement.not_stated == ("a",)


@pytest.mark.parametrize(
    "rules",
    [("minimum_rows",) * 1000, ("<script>alert(1)</script>",), ("oil leak at Mrs Miller's",)],
    ids=["many", "markup", "a text"],
)
def test_refusal_that_names_no_rules_is_rejected(rules):
    world = world_of(campaign_of())
    plan = plan_of(world)
    fields = {"campaign_digest": plan.campaign_digest, "round": 1, "site": "a", "reason": "gate"}
    refusal = sign(Declined.model_construct(**fields, rules=rules), world.sites["a"].key)
    world.store.put_once(keys.declined("tiny", 1, "a"), to_bytes(refusal))

    answer = examine_site(world.assembly, world.store, plan, site="a")

    assert (answer.status, answer.rules) == ("rejected", ())


NASTY = {
    "nothing": b"",
    "no json": b"{",
    "no utf-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "nested deeply": b'{"charge":{"event":' + b'{"kind":"self_composed","count":1,"event":' * 5000,
    "many brackets": b"[" * 1_000_000,
    "lone surrogate": b'{"site":"\\ud800"}',
    "a huge number": b'{"round":' + b"9" * 100_000 + b"}",
    "not a number": b'{"norm_bound":NaN}',
    "unknown keys": json.dumps({f"key-{n}\n": n for n in range(20_000)}).encode(),
}


@pytest.mark.parametrize("name", ["manifest.json", "declined.json"])
@pytest.mark.parametrize("data", NASTY.values(), ids=NASTY)
def test_document_that_is_none_is_rejected_and_ends_nothing(name, data, caplog):
    world = world_of(campaign_of())
    plan = plan_of(world)
    world.store.put_once(keys.update_prefix("tiny", 1, "a") + name, data)

    answer = examine_site(world.assembly, world.store, plan, site="a")

    assert (answer.status, answer.reason) == ("rejected", "payload")
    assert max((len(r.getMessage()) for r in caplog.records), default=0) < 1000


@pytest.mark.parametrize("depth", [10, 100, 240])
def test_events_nested_in_each_other_are_rejected_and_end_nothing(depth):
    world = world_of(campaign_of())
    take_part(world, "a")
    manifest = read_document(world.store, keys.manifest("tiny", 1, "a"), UpdateManifest)
    event = '{"kind":"self_composed","count":1,"event":' * depth + (
        '{"kind":"gaussian","noise_multiplier":0.8}' + "}" * depth
    )
    plain = json.loads(to_bytes(manifest))
    plain["charge"]["event"] = json.loads(event)
    world.store._objects[keys.manifest("tiny", 1, "a")] = json.dumps(plain).encode()

    answer = examine_site(world.assembly, world.store, plan_of(world), site="a")

    assert answer.status == "rejected"


def test_complaint_about_a_document_is_short_and_one_line():
    data = json.dumps({f"key-{n}\n\x1b[2J": n for n in range(20_000)}).encode()

    with pytest.raises(ObjectCorrupt) as caught:
        from_bytes(UpdateManifest, data, what="manifest.json")

    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


class Hungry:
    """A store that counts what is read into memory; beyond the limit nothing is."""

    def __init__(self, inner):
        self.inner, self.largest = inner, 0

    def get(self, key, *, max_bytes=None):
        data = self.inner.get(key, max_bytes=max_bytes)
        self.largest = max(self.largest, len(data))
        return data

    def list(self, prefix):
        return self.inner.list(prefix)

    def put_once(self, key, data):
        return self.inner.put_once(key, data)


@pytest.mark.parametrize("name", ["manifest.json", "payload.safetensors", "budget.json"])
def test_object_of_any_length_is_rejected_without_being_read(name):
    world = world_of(campaign_of())
    for site in "abc":
        take_part(world, site)
    long = b" " * (8 << 20)
    world.store._objects[keys.update_prefix("tiny", 1, "a") + name] = long
    store = Hungry(world.store)
    plan = plan_of(world)

    examine_site(world.assembly, store, plan, site="a")
    budgets = read_budgets(world.assembly, store, plan, collected=collect(world))

    assert store.largest < len(long)
    assert "a" not in budgets
