"""Whatever an operator decides, whenever, and whatever dies: one draw at most, and only as wanted.

Decisions are drawn between any two steps of a round: before it, while the gate is asked, while the
site trains, while an update waits for its time, and between two processes of the site.
"""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, sha256_hex
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import exists
from fl_core.campaign.specs import CohortRule
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_decision import Ask, decide, standing
from fl_core.rounds.site_round import client_round
from fl_core.updates.manifest import Declined
from tests.fragile_worlds import Crash
from tests.worlds import NOW, campaign_of, open_site, world_of

DEADLINE_S = 600
KINDS = ("nothing", "nothing", "pause", "resume", "refuse", "allow", "approve", "leave", "die")


class Played:
    """One round at one site, with an operator and a power supply that do what is drawn."""

    def __init__(self, draw, *, hold):
        cohort = CohortRule(deadline_s=DEADLINE_S, upload_after_s=60.0)
        self.world = world_of(campaign_of(cohort=cohort), hold=hold)
        self.plan = open_round(self.world.assembly, self.world.store, round_number=1, now=NOW)
        self.draw, self.decisions, self.time = draw, MemoryStore(), NOW + timedelta(seconds=1)
        self.digest, self.work = self.world.assembly.digest, self.world.works["a"]
        self.prefix = keys.exchange(self.world.sites["a"].policy.dataset, self.digest, 1)
        gate = self.work.gate
        self.work.gate = lambda: (self.happens(), gate())[1]
        self.work.on_train = self.happens
        self.left, self.objections = [], []
        self.put_once, self.world.store.put_once = self.world.store.put_once, self.upload

    def now(self):
        return self.time

    def wait_until(self, moment):
        self.time = max(self.time, moment)
        self.happens()

    def upload(self, key, data):
        if key.endswith(keys.PAYLOAD):
            now, record = standing(self.decisions), self.site().outbox.record(self.prefix)
            manifest = record.files[keys.MANIFEST]
            self.objections.append(now.refusal(self.digest, 1))
            self.left.append((data, now.is_approved(self.digest, 1, manifest)))
        return self.put_once(key, data)

    def site(self):
        """Open the site as a process that has just started."""
        old = self.world.sites["a"]
        opened = open_site(
            "a", old.key, old.policy, self.world.ledgers["a"], self.world.outboxes["a"],
            witnesses=old.witnesses,
        )  # fmt: skip
        return replace(opened, clock=self, decisions=self.decisions)

    def happens(self):
        kind = self.draw(st.sampled_from(KINDS))
        if kind == "die":
            raise Crash
        if kind == "nothing":
            return
        manifest = self.site().outbox.record(self.prefix).files.get(keys.MANIFEST)
        if kind == "approve" and manifest is None:
            return
        ask = Ask() if kind in {"pause", "resume"} else Ask(self.digest)
        if kind == "approve":
            ask = Ask(self.digest, 1, manifest)
        decide(self.decisions, kind, ask, now=NOW)

    def process(self):
        """Let one process of the site answer, until it has a word or is gone."""
        site, work = self.site(), self.work
        store = self.world.store
        if any(exists(store, key("tiny", 1, "a")) for key in (keys.declined, keys.manifest)):
            # As the session does: a round that is answered is not due.
            return "answered"
        try:
            self.happens()
            return client_round(
                site, work, assembly=self.world.assembly, store=store, plan=self.plan
            ).status
        except Crash:
            return "died"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), hold=st.booleans())
def test_rule_18_any_decisions_let_one_draw_out_at_most_and_only_as_wanted(data, hold):
    played = Played(data.draw, hold=hold)

    for _ in range(data.draw(st.integers(1, 5))):
        played.process()

    store, ledger = played.world.store, played.site().ledger
    charges, begun = len(ledger.events()), played.site().outbox.is_begun(played.prefix)
    declined = keys.declined("tiny", 1, "a")
    assert played.objections == [""] * len(played.left)
    assert len({sha256_hex(payload) for payload, _ in played.left}) <= 1
    assert not hold or all(is_approved for _, is_approved in played.left)
    assert charges == 1 if played.work.trainings else charges <= 1
    assert played.work.trainings <= 2
    if exists(store, declined) and begun:
        # Only what came before training may say more than that there is no update.
        assert read_document(store, declined, Declined).reason == "no_update"
    if played.left:
        assert charges == 1
