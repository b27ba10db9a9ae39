"""Finished campaigns in memory whose statements tests check, and what is logged of them."""

import copy

from fl_core.artifacts.documents import to_bytes
from fl_core.privacy.statement_text import to_markdown
from fl_core.rounds.statement_check import Logged, Verification, verify_version
from fl_core.rounds.version_statement import version_statement
from tests.round_steps import finish, take_part
from tests.worlds import World, campaign_of, world_of

ROUND = 2
CLIENT = {"epsilon": 20.0, "delta": 1e-5, "clip_norm": 0.5, "noise_multiplier": 1.0}


def run_world(campaign, rounds=ROUND, **policy) -> World:
    """Run whole rounds; ``policy`` changes what every site allows."""
    world = world_of(campaign, **policy)
    for number in range(1, rounds + 1):
        for site in world.sites:
            take_part(world, site, number)
        finish(world, number)
    return world


def client_campaign(mechanism, *, record=False):
    """Return the tiny campaign under ClientDp, with its promise to rows if asked."""
    privacy = {"client": CLIENT | {"mechanism": mechanism}}
    if record:
        privacy["record"] = campaign_of().privacy.record.model_dump(exclude_none=True)
    return campaign_of(privacy=privacy)


def apart(world: World) -> World:
    """Return the same world with a store of its own to tamper with."""
    own = copy.copy(world)
    own.store = copy.copy(world.store)
    own.store._objects = dict(world.store._objects)
    return own


def logged_of(world: World, number=ROUND) -> Logged:
    """Return what an honest coordinator logs of a version."""
    statement = version_statement(world.assembly, world.store, number)
    return Logged(
        statement=to_bytes(statement),
        markdown=to_markdown(statement),
        adapter_sha256=statement.adapter_sha256,
    )


def check(world: World, logged=None, number=ROUND) -> Verification:
    """Verify a version against what was logged, by default honestly."""
    return verify_version(
        world.assembly, world.store, number, logged=logged or logged_of(world, number)
    )
