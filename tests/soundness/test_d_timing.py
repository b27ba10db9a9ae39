"""SOUNDNESS, rule 19: where a campaign asks for it, the time of an upload says nothing of rows."""

import dataclasses
from datetime import datetime, timedelta

import pytest
from worlds import NOW, campaign_of, world_of

from fl_core.artifacts import keys
from fl_core.artifacts.store import exists
from fl_core.campaign.specs import CohortRule
from fl_core.errors import RoundError, StoreUnavailable
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_round import client_round, decline_round, require_own_plan
from fl_core.rounds.upload_time import WallClock
from fl_core.updates.records import GateReport

UPLOAD_AFTER_S = 120.0
UPLOAD_AT = NOW + timedelta(seconds=UPLOAD_AFTER_S)


class Clock:
    """A clock that waits by moving on."""

    def __init__(self) -> None:
        self.time = NOW + timedelta(seconds=1)

    def now(self) -> datetime:
        return self.time

    def wait_until(self, moment: datetime) -> None:
        self.time = max(self.time, moment)


class Watched:
    """A store that notes when something is written to it."""

    def __init__(self, store, clock) -> None:
        self._store, self._clock = store, clock
        self.written = []
        self.get, self.list = store.get, store.list

    def put_once(self, key, data):
        self.written.append((key, self._clock.time))
        return self._store.put_once(key, data)


class Round:
    """One round of one site, whose training takes so long."""

    def __init__(self, *, training_s=5.0, upload_after_s=UPLOAD_AFTER_S):
        cohort = CohortRule(deadline_s=600, upload_after_s=upload_after_s)
        self.world = world_of(campaign_of(cohort=cohort))
        self.plan = open_round(self.world.assembly, self.world.store, round_number=1, now=NOW)
        self.clock = Clock()
        self.store = Watched(self.world.store, self.clock)
        site = self.world.sites["a"]
        witnesses = tuple(
            dataclasses.replace(w, store=self.store) if w.store is self.world.store else w
            for w in site.witnesses
        )
        self.site = dataclasses.replace(site, clock=self.clock, witnesses=witnesses)
        self.work = self.world.works["a"]
        self.work.on_train = lambda: self.pass_time(training_s)

    def pass_time(self, seconds):
        self.clock.time += timedelta(seconds=seconds)

    def answer(self):
        return client_round(
            self.site,
            self.work,
            assembly=self.world.assembly,
            store=self.store,
            plan=self.plan,
        )

    def left_at(self, what):
        """Return when an object of that name was written, in seconds after the plan."""
        return {(t - NOW).total_seconds() for key, t in self.store.written if key.endswith(what)}


def test_rule_19_every_site_uploads_at_the_same_time_however_long_it_trained():
    times = set()
    for training_s in (1.0, 40.0, 100.0):
        one = Round(training_s=training_s)
        assert one.answer().status == "uploaded"
        times |= one.left_at("manifest.json") | one.left_at("payload.safetensors")

    assert times == {UPLOAD_AFTER_S}


def test_rule_19_nothing_leaves_between_training_and_the_upload_time():
    one = Round(training_s=40.0)

    one.answer()

    # What is written before training (a ledger entry at a witness) follows no row.
    assert {(t - NOW).total_seconds() for _, t in one.store.written} <= {1.0, UPLOAD_AFTER_S}


def test_rule_19_a_training_that_fails_is_told_at_the_same_time():
    one = Round()
    one.work.fails_with = ValueError("made up")

    assert one.answer().reason == "no_update"

    assert one.left_at("declined.json") == {UPLOAD_AFTER_S}


def test_rule_19_no_update_of_the_session_waits_as_well():
    one = Round()

    decline_round(
        one.site, assembly=one.world.assembly, store=one.store, plan=one.plan, detail="made up"
    )

    assert one.left_at("declined.json") == {UPLOAD_AFTER_S}


@pytest.mark.parametrize("reason", ["gate", "policy", "budget"])
def test_rule_19_a_refusal_waits_too_since_reading_rows_takes_time(reason):
    one = Round()
    if reason == "gate":
        one.work.report = GateReport(suite_sha256="5" * 64, passed=False, failed=("minimum_rows",))
    changes = {"policy": {"campaigns": ()}, "budget": {"epsilon": 0.01, "rdp_order": 3.0}}
    policy = one.site.policy.model_copy(update=changes.get(reason, {}))
    one.site = dataclasses.replace(one.site, policy=policy)

    assert one.answer().reason == reason

    assert one.left_at("declined.json") == {UPLOAD_AFTER_S}


def test_rule_19_a_site_that_is_late_sends_when_it_is_ready_and_never_earlier():
    one = Round(training_s=300.0)

    one.answer()

    assert one.left_at("manifest.json") == {301.0}


def test_rule_19_without_a_fixed_time_a_site_uploads_when_ready():
    one = Round(training_s=5.0, upload_after_s=None)

    one.answer()

    assert one.left_at("manifest.json") == {6.0}


@pytest.mark.parametrize("moved", [None, UPLOAD_AT - timedelta(seconds=60)], ids=["none", "sooner"])
def test_rule_19_a_plan_with_another_upload_time_is_ignored(moved):
    one = Round()
    plan = one.plan.model_copy(update={"upload_at": moved})

    with pytest.raises(RoundError, match="upload_at"):
        require_own_plan(one.site, one.world.assembly, plan)


def test_rule_19_a_back_dated_plan_is_not_trained_for_and_costs_nothing():
    one = Round()
    one.pass_time(UPLOAD_AFTER_S)

    assert one.answer().reason == "no_update"

    assert one.work.trainings == 0
    assert one.site.ledger.events() == []


def test_rule_19_a_round_that_was_begun_in_time_goes_on_after_it():
    one = Round()
    one.work.on_train = lambda: one.pass_time(UPLOAD_AFTER_S)
    put = one.store.put_once
    one.store.put_once = fail_on(put, "payload.safetensors")
    with pytest.raises(StoreUnavailable):
        one.answer()
    one.store.put_once = put

    assert one.answer().status == "uploaded"

    assert one.work.trainings == 1
    assert exists(one.world.store, keys.manifest(one.world.assembly.campaign.id, 1, "a"))


def fail_on(put, name):
    def failing(key, data):
        if key.endswith(name):
            raise StoreUnavailable("made up")
        return put(key, data)

    return failing


def test_the_machines_clock_waits_and_returns_at_once_when_the_time_is_past():
    clock = WallClock()
    begun = clock.now()
    soon = begun + timedelta(seconds=0.05)

    clock.wait_until(soon)
    after = clock.now()
    clock.wait_until(begun)

    assert after >= soon
