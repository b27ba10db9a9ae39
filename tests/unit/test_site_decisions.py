"""What a site's operator decides holds at the next step of a round, and costs what it must."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from worlds import NOW, campaign_of, world_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex
from fl_core.artifacts.memory import MemoryStore
from fl_core.campaign.specs import CohortRule
from fl_core.errors import ObjectCorrupt
from fl_core.privacy.policy import parse_policy
from fl_core.privacy.policy_template import policy_text
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_decision import Ask, decide
from fl_core.rounds.site_round import client_round
from fl_core.updates.manifest import Declined

DEADLINE_S = 600


class Clock:
    def __init__(self) -> None:
        self.time = NOW + timedelta(seconds=1)

    def now(self) -> datetime:
        return self.time

    def wait_until(self, moment: datetime) -> None:
        self.time = max(self.time, moment)


class Played:
    """One site in a campaign whose rounds take ten minutes, with its operator at hand."""

    def __init__(self, *, hold=False, upload_after_s=None) -> None:
        cohort = CohortRule(deadline_s=DEADLINE_S, upload_after_s=upload_after_s)
        self.world = world_of(campaign_of(cohort=cohort), hold=hold)
        self.clock = Clock()
        site = self.world.sites["a"]
        self.site = replace(site, clock=self.clock, decisions=MemoryStore())
        self.work = self.world.works["a"]
        self.digest = self.world.assembly.digest

    def plan(self, number=1):
        return open_round(self.world.assembly, self.world.store, round_number=number, now=NOW)

    def answer(self, number=1):
        return client_round(
            self.site,
            self.work,
            assembly=self.world.assembly,
            store=self.world.store,
            plan=self.plan(number),
        )

    def says(self, kind, *, number=None, manifest=None, whole_site=False):
        digest = None if whole_site else self.digest
        return decide(self.site.decisions, kind, Ask(digest, number, manifest), now=NOW)

    def approves(self, number=1):
        return self.says(
            "approve", number=number, manifest=self.record(number).files["manifest.json"]
        )

    def record(self, number=1):
        prefix = keys.exchange(self.site.policy.dataset, self.digest, number)
        return self.site.outbox.record(prefix)

    def left(self, number=1):
        """Return the names of what a round put into the store."""
        prefix = keys.update_prefix("tiny", number, "a")
        return [key.removeprefix(prefix) for key in self.world.store.list(prefix)]

    def declined(self, number=1):
        return read_document(self.world.store, keys.declined("tiny", number, "a"), Declined)

    def entries(self):
        return [entry.kind for entry in self.site.ledger.entries()]

    def witnessed(self):
        """Return how many entries the coordinator's copy of the ledger has."""
        return len(self.world.store.list(keys.witnessed_of("a")))


FILES = ["budget.json", "manifest.json", "payload.safetensors"]


@pytest.mark.parametrize("harm", ["lost", "renamed", "broken"])
def test_folder_of_decisions_that_is_not_whole_stops_the_site(harm):
    played = Played()
    for _ in range(3):
        played.says("pause", whole_site=True)
    objects = played.site.decisions._objects
    second = objects.pop(keys.decision(2))
    if harm == "renamed":
        objects[keys.decision(4)] = second
    if harm == "broken":
        objects[keys.decision(2)] = b"{"

    with pytest.raises(ObjectCorrupt):
        played.answer()

    assert played.left() == []
    assert played.entries() == ["genesis"]


def test_held_update_is_ready_and_charged_and_nothing_of_it_leaves():
    played = Played(hold=True)

    outcome = played.answer()

    assert outcome.status == "held"
    assert played.left() == []
    assert played.record().progress == "held"
    assert played.record().notes["held"].until == played.plan().deadline
    # The ledger's commit would tell the coordinator's copy when training ended.
    assert played.entries() == ["genesis", "reserve"]
    assert played.witnessed() == 2


def test_approved_update_leaves_byte_for_byte_as_it_was_shown():
    played = Played(hold=True)
    played.answer()
    shown = played.record().files
    played.approves()

    outcome = played.answer()

    sent = {n: played.world.store.get(keys.update_prefix("tiny", 1, "a") + n) for n in FILES}
    assert outcome.status == "uploaded"
    assert {name: sha256_hex(data) for name, data in sent.items()} == shown
    assert played.work.trainings == 1
    assert played.entries() == ["genesis", "reserve", "commit"]
    assert played.record().progress == "uploaded"


def test_approval_of_other_bytes_lets_nothing_out():
    played = Played(hold=True)
    played.answer()
    played.says("approve", number=1, manifest="0" * 64)

    assert played.answer().status == "held"
    assert played.left() == []


def test_approval_of_one_round_is_none_of_the_next():
    played = Played(hold=True)
    played.answer()
    played.approves()
    played.answer()

    assert played.answer(2).status == "held"
    assert played.left(2) == []


def test_update_that_nobody_approved_in_time_never_leaves_and_stays_charged():
    played = Played(hold=True)
    played.answer()
    played.clock.time = NOW + timedelta(seconds=DEADLINE_S)

    outcome = played.answer()

    assert outcome.status == "withheld"
    assert played.record().progress == "withheld"
    assert "not approved" in played.record().notes["withheld"].text
    assert played.left() == []
    assert played.work.trainings == 1
    assert len(played.site.ledger.events()) == 1


def test_hold_that_the_policy_no_longer_asks_for_lets_the_update_out():
    played = Played(hold=True)
    played.answer()
    policy = played.site.policy.model_copy(update={"hold": False})
    played.site = replace(played.site, policy=policy)

    assert played.answer().status == "uploaded"


def test_held_update_of_a_campaign_with_an_upload_time_is_shown_at_once_and_leaves_then():
    played = Played(hold=True, upload_after_s=120.0)

    held = played.answer()
    at = played.clock.time
    played.approves()
    sent = played.answer()

    assert (held.status, sent.status) == ("held", "uploaded")
    assert at == NOW + timedelta(seconds=1)
    assert played.clock.time == NOW + timedelta(seconds=120)


def test_policy_without_the_field_holds_nothing_and_the_template_says_it_is_off():
    text = policy_text(epsilon=8.0, delta=1e-5).replace("{dataset}", "rows")

    assert "\nhold = false\n" in text
    assert not parse_policy(text, source="policy").hold
    assert parse_policy(text.replace("hold = false", "hold = true"), source="policy").hold


@pytest.mark.parametrize(
    ("kind", "number", "reason"),
    [
        ("pause", None, "policy"),
        ("refuse", None, "policy"),
        ("refuse", 1, "policy"),
        ("leave", None, "left"),
    ],
    ids=["pause", "refuse campaign", "refuse round", "leave"],
)
def test_round_that_is_not_wanted_is_declined_before_anything_is_charged(kind, number, reason):
    played = Played()
    played.says(kind, number=number, whole_site=kind == "pause")

    outcome = played.answer()

    assert (outcome.status, outcome.reason) == ("declined", reason)
    assert (played.declined().reason, played.declined().rules) == (reason, ())
    assert played.work.trainings == 0
    assert played.entries() == ["genesis"]
    assert played.record().progress == "declined"


@pytest.mark.parametrize(
    ("no", "yes"), [("pause", "resume"), ("refuse", "allow")], ids=["pause", "refuse"]
)
def test_next_round_goes_on_when_a_decision_is_taken_back(no, yes):
    played = Played()
    whole = no == "pause"
    played.says(no, whole_site=whole)
    played.answer(1)
    played.says(yes, whole_site=whole)

    assert played.answer(2).status == "uploaded"


def test_refusal_of_one_round_leaves_the_others_alone():
    played = Played()
    played.says("refuse", number=1)

    assert played.answer(1).status == "declined"
    assert played.answer(2).status == "uploaded"


def test_left_campaign_stays_left():
    played = Played()
    played.says("leave")
    played.says("allow")
    played.says("resume", whole_site=True)

    assert [played.answer(n).reason for n in (1, 2)] == ["left", "left"]


def test_decision_while_the_gate_is_asked_holds_before_training():
    played = Played()
    ask = played.work.gate

    def meanwhile():
        played.says("refuse")
        return ask()

    played.work.gate = meanwhile

    outcome = played.answer()

    assert (outcome.status, outcome.reason) == ("declined", "policy")
    assert played.work.trainings == 0


def test_pause_while_training_lets_the_round_be_finished_and_stops_the_next():
    played = Played()
    played.work.on_train = lambda: played.says("pause", whole_site=True)

    assert played.answer(1).status == "uploaded"
    assert played.answer(2).status == "declined"


@pytest.mark.parametrize("kind", ["refuse", "leave"])
def test_refusal_while_training_shows_in_nothing_but_the_absence_of_an_update(kind):
    played = Played()
    played.work.on_train = lambda: played.says(kind)

    outcome = played.answer()

    assert outcome.status == "withheld"
    assert played.left() == []
    assert played.record().progress == "withheld"
    assert len(played.site.ledger.events()) == 1


@pytest.mark.parametrize("kind", ["refuse", "leave"])
def test_refusal_while_training_ends_the_round_at_its_upload_time_whenever_training_ended(kind):
    played = Played(upload_after_s=120.0)
    played.work.on_train = lambda: played.says(kind)

    outcome = played.answer()

    assert outcome.status == "withheld"
    assert played.clock.time == NOW + timedelta(seconds=120)


def test_refusal_after_a_training_died_says_no_more_than_a_cut_link():
    played = Played()

    class Killed(BaseException):
        pass

    def dies():
        raise Killed

    played.work.on_train = dies
    with pytest.raises(Killed):
        played.answer()
    played.says("refuse")

    outcome = played.answer()

    assert outcome.status == "withheld"
    assert played.left() == []
    assert played.work.trainings == 1


def test_pause_lets_a_training_that_died_have_its_second_attempt():
    played = Played()

    class Killed(BaseException):
        pass

    def dies():
        played.work.on_train = lambda: None
        raise Killed

    played.work.on_train = dies
    with pytest.raises(Killed):
        played.answer()
    played.says("pause", whole_site=True)

    assert played.answer().status == "uploaded"


def test_refusal_taken_back_before_the_deadline_lets_the_same_update_out():
    played = Played()
    played.work.on_train = lambda: played.says("refuse", number=1)
    played.answer()
    played.says("allow", number=1)

    outcome = played.answer()

    assert outcome.status == "uploaded"
    assert played.work.trainings == 1
    assert played.record().progress == "uploaded"


def test_refusal_during_the_wait_for_the_upload_time_is_heard():
    played = Played(upload_after_s=120.0)

    def wait(moment):
        played.clock.time = moment
        played.says("refuse")

    played.clock.wait_until = wait

    assert played.answer().status == "withheld"
    assert played.left() == []
    assert played.witnessed() == 2
