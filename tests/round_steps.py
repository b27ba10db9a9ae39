"""The steps of a round over a ``World``, as coordinator and sites would take them one by one."""

from datetime import datetime

from fl_core.rounds.charging import charge_round
from fl_core.rounds.closing import close_collection
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Collected, Outcome, RoundPlan, SiteAnswer
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import release_round, skip_round
from fl_core.rounds.site_round import SiteOutcome, client_round
from tests.worlds import AFTER_DEADLINE, NOW, World


def plan_of(world: World, number: int = 1) -> RoundPlan:
    return open_round(world.assembly, world.store, round_number=number, now=NOW)


def take_part(world: World, site: str, number: int = 1) -> SiteOutcome:
    return client_round(
        world.sites[site],
        world.works[site],
        assembly=world.assembly,
        store=world.store,
        plan=plan_of(world, number),
    )


def answers_of(world: World, plan: RoundPlan) -> dict[str, SiteAnswer]:
    found = {s: examine_site(world.assembly, world.store, plan, site=s) for s in plan.cohort}
    return {site: answer for site, answer in found.items() if answer is not None}


def collect(world: World, number: int = 1, now: datetime = AFTER_DEADLINE) -> Collected | None:
    plan = plan_of(world, number)
    return close_collection(
        world.assembly, world.store, plan, answers=answers_of(world, plan), now=now
    )


def release(world: World, collected: Collected) -> Outcome:
    plan = plan_of(world, collected.round)
    charge = charge_round(
        world.assembly, world.store, plan, collected=collected, coordinator=world.coordinator
    )
    return release_round(
        world.assembly,
        world.store,
        plan,
        collected=collected,
        charge=charge,
        now=AFTER_DEADLINE,
        coordinator=world.coordinator,
    )


def finish(world: World, number: int = 1) -> Outcome:
    plan, collected = plan_of(world, number), collect(world, number)
    if not collected.has_quorum:
        return skip_round(world.assembly, world.store, plan, reason="few", now=AFTER_DEADLINE)
    return release(world, collected)
