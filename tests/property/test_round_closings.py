"""A round closes once, whoever looks at it, whenever, and whatever breaks in between."""

from datetime import timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.rounds.adapters import read_state
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import new_answers
from fl_core.rounds.documents import Collected, QuorumReached
from fl_core.rounds.plan import open_round, read_outcome
from fl_core.rounds.release import failed_if_hopeless
from fl_core.rounds.released_delta import read_release
from fl_core.rounds.status import next_round
from tests.fragile_worlds import Crash, FragileStore, coordinate
from tests.round_steps import plan_of, take_part
from tests.worlds import AFTER_DEADLINE, NO_PRIVACY, NOW, campaign_of, world_of

SITES = ("a", "b", "c", "d")
GRACE_S, DEADLINE_S = 60, 600


class Broken(Exception):
    """What no second try mends, as a bug or a library would raise it."""


class Watched:
    """A round of four sites that coordinators look at; notes when and with what it was frozen."""

    def __init__(self):
        cohort = {"quorum": 2, "grace_s": GRACE_S, "deadline_s": DEADLINE_S}
        self.world = world_of(campaign_of(sites=SITES, privacy=NO_PRIVACY, cohort=cohort))
        self.store = FragileStore(self.world.store, self._around)
        self.crashes = ""
        self.answered, self.frozen, self.frozen_at = set(), None, None

    def _around(self, when):
        if self.crashes == when:
            raise Crash(when)

    def answer(self, site):
        take_part(self.world, site)
        if self.frozen is None:
            self.answered.add(site)

    def _stored(self):
        key = keys.collected("tiny", 1)
        is_there = key in self.world.store.list(key)
        return read_document(self.world.store, key, Collected) if is_there else None

    def look(self, at_s):
        plan, now = plan_of(self.world), NOW + timedelta(seconds=at_s)
        assembly = self.world.assembly
        answers = new_answers(assembly, self.store, plan, known=())
        try:
            found = close_collection(assembly, self.store, plan, answers=answers, now=now)
        except Crash:
            # Killed around a write: what the store holds by now is what counts.
            found = self._stored()
        self.crashes = ""
        if self.frozen is not None:
            assert found == self.frozen
        elif found is not None:
            self.frozen, self.frozen_at = found, now


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.sampled_from(SITES), st.floats(0, 700), st.sampled_from(["before", "after"])),
        max_size=25,
    )
)
def test_coordinators_with_clocks_apart_freeze_one_list_and_none_before_its_time(steps):
    watched = Watched()
    for step in steps:
        if step in ("before", "after"):
            watched.crashes = step
        elif step in SITES:
            watched.answer(step)
        else:
            watched.look(step)
    watched.crashes = ""

    watched.look(DEADLINE_S)

    assert watched.frozen.accepted == sorted(watched.answered)
    is_early = watched.frozen_at < NOW + timedelta(seconds=DEADLINE_S)
    if is_early and len(watched.answered) < len(SITES):
        reached = read_document(watched.world.store, keys.quorum("tiny", 1), QuorumReached)
        assert len(watched.answered) >= 2
        assert (watched.frozen_at - reached.at).total_seconds() >= GRACE_S


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_breaks_anywhere_closes_the_round_once_and_the_next_one_can_run(data):
    world = world_of(campaign_of(sites=("a", "b")))
    for site in ("a", "b"):
        take_part(world, site)
    left = data.draw(st.integers(0, 4))

    def around(when):
        nonlocal left
        if left and data.draw(st.integers(0, 2)) == 0:
            left -= 1
            raise data.draw(st.sampled_from([Crash, Broken]))(when)

    store = FragileStore(world.store, around)
    seen = []
    for _ in range(40):
        try:
            plan = open_round(world.assembly, store, round_number=1, now=NOW)
            with failed_if_hopeless(world.assembly, store, plan, now=lambda: AFTER_DEADLINE):
                coordinate(world, store)
        except (Crash, Broken):
            pass
        seen.append(read_outcome(world.store, "tiny", 1))

    ends = {outcome.model_dump_json() for outcome in seen if outcome is not None}
    outcome = seen[-1]
    assert len(ends) == 1
    assert seen == sorted(seen, key=lambda found: found is not None)
    assert next_round(world.assembly, world.store) == 2
    plan = plan_of(world, 2)
    if outcome.status == "failed":
        assert outcome.reason == "Broken"
        assert plan.base_hash == outcome.base_hash
        return
    campaign = world.assembly.campaign
    before = read_state(world.store, campaign, outcome.base_hash).tensors()
    after = read_state(world.store, campaign, plan.base_hash).tensors()
    released = read_release(world.store, "tiny", 1)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name] + released[name])
