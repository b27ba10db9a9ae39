"""Every rule that a privacy claim stands on has a test of its number, or a tested refusal.

The rules are those of the project's soundness document. Masks (29 to 32), drift (21) and buffered
rounds (27) are parts that do not exist yet, so what is tested of them is that they are refused.
"""

import ast
import re

import pytest
from sources import ROOT

RULES = range(1, 33)
_TEST = re.compile(r"test_rule_(\d+)_")
# "24 zeroth order" or "29-32 masks": cases of a table of refusals.
_CASE = re.compile(r"(\d+)(?:-(\d+))? [a-z]")


def rules_of(node):
    if isinstance(node, ast.FunctionDef):
        match = _TEST.match(node.name)
        return set() if match is None else {int(match[1])}
    if isinstance(node, ast.Dict):
        names = [k.value for k in node.keys if isinstance(k, ast.Constant)]
        cases = [m for m in map(_CASE.match, map(str, names)) if m]
        return {n for m in cases for n in range(int(m[1]), int(m[2] or m[1]) + 1)}
    return set()


def covered_rules():
    return {
        rule
        for path in (ROOT / "tests" / "soundness").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for rule in rules_of(node)
    }


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_a_test_of_its_number(rule):
    assert rule in covered_rules()


def test_no_test_names_a_rule_that_does_not_exist():
    assert covered_rules() <= set(RULES)
