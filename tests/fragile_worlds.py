"""Rounds in which any write may be the last: crashes, processes that start afresh, and races.

A crash is an exception raised before or after a write. A race is another coordinator running to its
end at exactly that moment.
"""

from collections.abc import Callable

from hypothesis import strategies as st

from fl_core.artifacts.store import ObjectStore
from fl_core.privacy.federation import FederationLimits, open_federation
from fl_core.rounds.central_release import NO_FEDERATION, Coordinator
from fl_core.rounds.charging import charge_round
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Outcome
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import release_round, skip_round
from fl_core.rounds.site_round import client_round
from tests.worlds import AFTER_DEADLINE, NOW, World, open_site


class Crash(BaseException):
    """The process is gone; nothing below the test may catch it."""


class FragileStore:
    """Passes everything on; asks the script what happens around every write."""

    def __init__(self, inner: ObjectStore, around: Callable[[str], None]) -> None:
        self._inner, self._around = inner, around
        self.left: dict[str, set[bytes]] = {}
        self.order: list[str] = []

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self._inner.get(key, max_bytes=max_bytes)

    def list(self, prefix: str) -> list[str]:
        return self._inner.list(prefix)

    def put_once(self, key: str, data: bytes) -> bool:
        self._around("before")
        self.left.setdefault(key, set()).add(data)
        written = self._inner.put_once(key, data)
        if written:
            self.order.append(key)
        self._around("after")
        return written

    def discard(self, key: str) -> None:
        self._around("before")
        self._inner.discard(key)
        self._around("after")


class Script:
    """Draws what happens around every write: nothing, one of a few crashes, or a race.

    Attributes:
        race: What a racing coordinator does; None while nobody races.
    """

    def __init__(self, data: st.DataObject) -> None:
        self.race: Callable[[], object] | None = None
        self._data = data
        self._crashes_left = data.draw(st.integers(0, 12))
        self._is_racing = False

    def __call__(self, when: str) -> None:
        if self._crashes_left and self._data.draw(st.integers(0, 3)) == 0:
            self._crashes_left -= 1
            raise Crash(when)
        may_race = self.race is not None and not self._is_racing
        if may_race and self._data.draw(st.integers(0, 5)) == 0:
            self._is_racing = True
            try:
                self.race()
            finally:
                self._is_racing = False


def until_done(step: Callable[[], object], tries: int = 60) -> None:
    for _ in range(tries):
        try:
            step()
        except Crash:
            continue
        return
    raise AssertionError("did not finish")


def coordinator_over(world: World, store: ObjectStore) -> Coordinator:
    """A coordinator process that has just started."""
    known = world.coordinator.federation
    if known is None:
        return NO_FEDERATION
    limits = FederationLimits(epsilon=known.policy.epsilon, delta=known.policy.delta)
    return Coordinator(open_federation(store, limits=limits, key=known.key))


def coordinate(world: World, store: ObjectStore) -> Outcome:
    assembly, own = world.assembly, coordinator_over(world, store)
    plan = open_round(assembly, store, round_number=1, now=NOW)
    answers = {
        site: answer
        for site in plan.cohort
        if (answer := examine_site(assembly, store, plan, site=site)) is not None
    }
    collected = close_collection(assembly, store, plan, answers=answers, now=AFTER_DEADLINE)
    assert collected is not None
    if not collected.has_quorum:
        return skip_round(assembly, store, plan, reason="few", now=AFTER_DEADLINE)
    charge = charge_round(assembly, store, plan, collected=collected, coordinator=own)
    return release_round(
        assembly,
        store,
        plan,
        collected=collected,
        charge=charge,
        now=AFTER_DEADLINE,
        coordinator=own,
    )


def take_part(
    world: World, site: str, store: ObjectStore, wrap: Callable[[ObjectStore], ObjectStore]
) -> None:
    """One process of a site: opens everything afresh, as after a kill."""
    old = world.sites[site]
    whole = world.client_ledgers.get(site)
    fresh = open_site(
        site,
        old.key,
        old.policy,
        wrap(world.ledgers[site]),
        wrap(world.outboxes[site]),
        witnesses=old.witnesses,
        client_ledger_store=None if whole is None else wrap(whole),
        copies=old.federation_copies,
    )
    plan = open_round(world.assembly, store, round_number=1, now=NOW)
    client_round(fresh, world.works[site], assembly=world.assembly, store=store, plan=plan)
