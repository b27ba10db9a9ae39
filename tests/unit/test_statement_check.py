"""A statement is made again from signed documents; whatever was changed in it is named."""

import copy
import json

import pytest

from fl_core.rounds.statement_check import Logged, first_difference, verify_version
from fl_core.rounds.version_statement import version_statement
from tests.told_worlds import ROUND, apart, check, client_campaign, logged_of, run_world
from tests.worlds import campaign_of

CAMPAIGNS = {
    "rows": campaign_of,
    "local": lambda: client_campaign("local_gaussian"),
    "central": lambda: client_campaign("gaussian"),
    "rows-and-central": lambda: client_campaign("gaussian", record=True),
    "rows-and-local": lambda: client_campaign("local_gaussian", record=True),
}


@pytest.fixture(scope="module")
def finished():
    return run_world(campaign_of())


@pytest.fixture
def world(finished):
    return apart(finished)


@pytest.mark.parametrize("make", CAMPAIGNS.values(), ids=CAMPAIGNS)
def test_honest_statement_of_every_kind_of_promise_holds(make):
    # Without a promise to rows each of them still pays for the site's noise, at half of it.
    ample = {"epsilon": 60.0, "rdp_order": 3.0} if make is CAMPAIGNS["local"] else {}
    world = run_world(make(), **ample)

    verified = check(world)

    assert verified.broken is None, verified.broken
    assert [c.what for c in verified.checks][-1] == "logged statement"
    (copies,) = [c.note for c in verified.checks if "copies" in c.what]
    stated = len(version_statement(world.assembly, world.store, ROUND).sites)
    levels = 2 if make in (CAMPAIGNS["local"], CAMPAIGNS["rows-and-local"]) else 1
    assert copies.startswith(f"{stated * levels} of {stated * levels} budgets have a copy")


def test_statement_can_be_checked_without_anything_logged(world):
    verified = verify_version(world.assembly, world.store, ROUND)

    assert verified.broken is None
    assert "made from the store alone" in verified.checks[-1].note


# --- The logged statement: every leaf of it, changed.


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from leaves(inner, (*path, number))
    else:
        yield path, value


def changed(value):
    if isinstance(value, bool) or value is None:
        return 7
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * (1 + 1e-6) if value else 1.0
    if isinstance(value, str):
        # Another hash where it is one, so that it is read and compared, not refused as malformed.
        return f"{'0' if value[:1] != '0' else '1'}{value[1:]}"
    return ["x"]


def test_every_single_field_of_the_logged_statement_that_is_changed_is_found(world):
    honest = logged_of(world)
    plain = json.loads(honest.statement)
    paths = list(leaves(plain))
    unnoticed = []

    for path, value in paths:
        tampered = copy.deepcopy(plain)
        place = tampered
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = changed(value)
        logged = Logged(statement=json.dumps(tampered).encode(), markdown=honest.markdown)
        broken = check(world, logged).broken
        if broken is None or broken.what != "logged statement":
            unnoticed.append(path)

    assert len(paths) > 100
    assert unnoticed == []


@pytest.mark.parametrize(
    "name", ["sites", "claims", "outside_claim", "leaves_site", "contributors"]
)
def test_an_item_that_is_left_out_of_the_logged_statement_is_found(world, name):
    honest = logged_of(world)
    plain = json.loads(honest.statement)
    plain[name] = plain[name][:-1]

    broken = check(world, Logged(statement=json.dumps(plain).encode())).broken

    assert broken.what == "logged statement"
    assert name in broken.complaint


def test_first_difference_is_named_with_both_values():
    honest, lie = {"a": 1, "b": [{"c": 2.0}]}, {"a": 1, "b": [{"c": 1.5}]}

    assert first_difference(lie, honest, path="") == "b[0].c is 1.5, it should be 2.0"
    assert first_difference(honest, honest, path="") == ""


def test_page_that_says_something_else_than_the_document_is_found(world):
    honest = logged_of(world)
    logged = Logged(honest.statement, honest.markdown.replace("5.27", "1.27"))

    broken = check(world, logged).broken

    assert "statement.md" in broken.complaint


def test_version_of_another_adapter_is_found(world):
    honest = logged_of(world)
    other = Logged(honest.statement, honest.markdown, adapter_sha256="9" * 64)

    broken = check(world, other).broken

    assert broken.what == "adapter"
    assert "999999" in broken.complaint


def test_statement_of_another_round_is_found(world):
    honest = logged_of(world, 1)

    broken = check(world, Logged(honest.statement, honest.markdown)).broken

    assert broken.what == "logged statement"
