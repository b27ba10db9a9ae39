"""What code outside this project may rely on, and that parts are found by their names."""

import ast
import typing
from typing import get_type_hints

import pytest
from sources import dotted, planted, project

import fl_core
from fl_core.aggregation.aggregator import AGGREGATORS
from fl_core.campaign.components import Part, Registry
from fl_core.codecs.codec import CODECS
from fl_core.cohorts.selection import SELECTIONS
from fl_core.privacy.mechanism import MECHANISMS

# Removing or renaming one of these is a major version.
PROMISED = {
    "AGGREGATORS", "CODECS", "MECHANISMS", "SELECTIONS", "Campaign", "FedClient", "FedServer",
    "NoPrivacy", "Part", "RecordDp", "Setting", "SimulatedSite", "errors", "read_campaign",
    "simulate",
}  # fmt: skip

REGISTRIES = {
    "fl_core/aggregation": AGGREGATORS,
    "fl_core/codecs": CODECS,
    "fl_core/cohorts": SELECTIONS,
    "fl_core/privacy": MECHANISMS,
}


def test_promised_names_are_the_listed_ones():
    assert set(fl_core.__all__) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_promised_name_is_importable_and_documented(name):
    value = getattr(fl_core, name)

    assert isinstance(value, Registry) or (value.__doc__ or "").strip()


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'secret'"):
        _ = fl_core.secret


def test_listed_names_are_those_that_type_checkers_see():
    source = next(s for s in project() if s.path == "fl_core/__init__.py")
    seen = {alias.asname or alias.name for node in _imports(source) for alias in node.names}

    assert seen >= PROMISED


def _imports(source):
    return [n for n in ast.walk(source.tree) if isinstance(n, ast.ImportFrom)]


def registrations(source):
    """Yield the kinds that a module registers, by its decorators."""
    for node in ast.walk(source.tree):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and dotted(decorator.func).endswith(".register"):
                yield decorator.args[0].value


@pytest.mark.parametrize("folder", REGISTRIES)
def test_every_part_in_a_package_is_found_by_its_registry(folder):
    written = {k for s in project() if s.path.startswith(folder) for k in registrations(s)}

    assert written
    assert written <= set(REGISTRIES[folder].kinds())


@pytest.mark.parametrize(
    ("registry", "kind"),
    [(r, k) for r in REGISTRIES.values() for k in r.kinds()],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_part_is_a_frozen_model_that_refuses_a_misspelt_parameter(registry, kind):
    part = registry._parts[kind]

    assert issubclass(part, Part)
    assert part.model_config["frozen"]
    assert part.model_config["extra"] == "forbid"


def test_decorators_are_read():
    source = planted('@AGGREGATORS.register("x")\nclass X: ...')

    assert list(registrations(source)) == ["x"]


def test_hints_of_the_ways_in_resolve():
    assert typing.get_origin(get_type_hints(fl_core.simulate)["return"]) is not None
