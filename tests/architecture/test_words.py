"""One word, one meaning, and names of modules that hide nothing (STYLE, 1 and 2; DESIGN, 10)."""

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import PurePosixPath

import pytest
from sources import PACKAGES, ROOT, Source, broken, planted

VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "base", "manager", "managers"}

# Identifiers of other libraries and papers, and the word that this project has for them.
OTHER_WORDS = {
    "max_grad_norm": "clip_norm",
    "l2_norm_clip": "clip_norm",
    "max_norm": "clip_norm",
    "clipping_threshold": "clip_norm",
    "noise_scale": "noise_stddev",
    "noise_std": "noise_stddev",
    "sigma": "noise_multiplier or noise_stddev",
    "eps": "epsilon",
    "privacy_level": "epsilon and delta",
    "participants": "cohort",
    "silo": "site",
    "party": "site",
    "global_update": "release",
    "foundation_model": "base_model",
    "backbone_model": "base_model",
    "test_set": "holdout",
    "staging": "candidate",
    "refund": "void",
}

# Where the other word is the right one, with the reason.
SAID_ELSEWHERE = {
    ("fl_core/privacy/gaussian_curve.py", "sigma"): "Balle and Wang 2018 and the known answers",
}


def modules_are_named_after_what_they_hold(source: Source):
    stem = PurePosixPath(source.path).stem
    if stem in VAGUE:
        yield f"{source.path}: {stem!r} says nothing about what is in it"


def modules_hide_no_library(source: Source):
    path = PurePosixPath(source.path)
    if path.parts[0] in {"flows", "tasks"} and path.stem in library_names():
        yield f"{source.path} has the name of a library, which it hides when its folder is a path"


def words_are_ours(source: Source):
    for name, node in _identifiers(source.tree):
        if name in OTHER_WORDS and (source.path, name) not in SAID_ELSEWHERE:
            yield f"{source.at(node)} says {name!r}, here it is {OTHER_WORDS[name]!r}"


def _identifiers(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.arg):
            yield node.arg, node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node


@cache
def library_names() -> set[str]:
    """Return what our own modules must not be called: standard modules and dependencies."""
    wanted = {_normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requires("fedloom")}
    installed = packages_distributions()
    dependencies = {m for m, owners in installed.items() if wanted & {_normal(o) for o in owners}}
    return (set(sys.stdlib_module_names) | dependencies) - set(PACKAGES)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


RULES = [modules_are_named_after_what_they_hold, modules_hide_no_library, words_are_ours]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_no_module_breaks_the_rule(rule):
    assert broken(rule) == []


def test_exceptions_are_still_needed():
    used = {
        (source_path, name)
        for source_path, name in SAID_ELSEWHERE
        if name in {n for n, _ in _identifiers(ast.parse(_text(source_path)))}
    }

    assert used == set(SAID_ELSEWHERE)


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rule", "text", "path"),
    [
        (modules_are_named_after_what_they_hold, "", "fl_core/data/utils.py"),
        (modules_hide_no_library, "", "flows/queue.py"),
        (modules_hide_no_library, "", "tasks/mlflow.py"),
        (words_are_ours, "def f(max_grad_norm): ...", "fl_core/x.py"),
        (words_are_ours, "sigma = 1.0", "fl_core/x.py"),
        (words_are_ours, "class C:\n    participants: int", "fl_core/x.py"),
    ],
)
def test_rule_finds_what_is_planted(rule, text, path):
    assert len(list(rule(planted(text, path)))) == 1


def test_folders_beside_the_packages_are_no_packages():
    # With an __init__.py they would hide the docker SDK and prefect's deployments (DESIGN, 10).
    assert [n for n in ("docker", "deployments") if (ROOT / n / "__init__.py").exists()] == []
