"""The runner of known answers only translates: fl_core answers, another module compares.

A runner that worked something out would prove itself right, not fl_core. So the module that asks
may not compute or see what is expected, and the one that compares may not ask or see inputs.
"""

import ast

import pytest
from sources import ROOT, Source, dotted, imports, planted

FOLDER = ROOT / "tests/vectors"
ASKS, COMPARES = "tests/vectors/calls.py", "tests/vectors/compare.py"

# Builtins that rename, collect or read; none of them turns numbers into another number.
RENAMING = {"dict", "list", "tuple", "enumerate", "zip", "float", "len", "KeyError", "frozenset"}
METHODS = {"get", "items", "values", "keys", "removeprefix", "append"}
ARITHMETIC = (ast.BinOp, ast.AugAssign, ast.Lambda, ast.While, ast.IfExp, ast.BoolOp)


def asking_computes_nothing(source: Source):
    for node in ast.walk(source.tree):
        if isinstance(node, ARITHMETIC):
            yield f"{source.at(node)} computes or chooses: {type(node).__name__}"
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            yield f"{source.at(node)} computes: {type(node.op).__name__}"
        elif isinstance(node, ast.Compare):
            yield f"{source.at(node)} compares"
        elif isinstance(node, ast.Constant) and _is_number(node.value):
            yield f"{source.at(node)} brings in the number {node.value}"


def asking_calls_only_the_core(source: Source):
    known = RENAMING | _from_core(source) | {function.name for function in source.functions}
    variables = _handed_functions(source)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        name = dotted(node.func)
        is_known = name.partition(".")[0] in known | variables or name == "np.asarray"
        if not (is_method or is_known):
            yield f"{source.at(node)} calls {name or ast.unparse(node.func)}"


def asking_uses_public_names_of_the_core(source: Source):
    allowed = {"collections.abc", "typing", "numpy"}
    for module, node in imports(source):
        if isinstance(node, ast.ImportFrom) and node.module != module:
            if module.rpartition(".")[2].startswith("_"):
                yield f"{source.at(node)} imports the private {module}"
        elif module not in allowed and not module.startswith("fl_core."):
            yield f"{source.at(node)} imports {module}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            yield f"{source.at(node)} reaches for {node.attr}"


def asking_sees_no_expectation(source: Source):
    yield from _says(source, {"expect", "expected", "tolerance", "abs_tol", "source", "note"})


def comparing_asks_nothing(source: Source):
    yield from _says(source, {"inputs", "params"})
    for module, node in imports(source):
        if module.partition(".")[0] not in {"collections", "math", "numpy", "typing"}:
            yield f"{source.at(node)} imports {module}"


def _says(source, words):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and node.value in words:
            yield f"{source.at(node)} says {node.value!r}"


def _is_number(value):
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _from_core(source):
    return {
        alias.asname or alias.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fl_core.")
        for alias in node.names
    }


def _handed_functions(source):
    # A name that is looked up in a table of functions of the core, as in `{"all": f}[kind]`.
    core = _from_core(source)
    return {
        target.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Subscript)
        and isinstance(node.value.value, ast.Dict)
        and all(isinstance(v, ast.Name) and v.id in core for v in node.value.value.values)
        for target in node.targets
        if isinstance(target, ast.Name)
    } | {
        target.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and dotted(node.value.func).partition(".")[0] in core
        for target in node.targets
        if isinstance(target, ast.Name)
    }


ASKING = [
    asking_computes_nothing,
    asking_calls_only_the_core,
    asking_uses_public_names_of_the_core,
    asking_sees_no_expectation,
]


def _read(path):
    return planted((ROOT / path).read_text(encoding="utf-8"), path)


@pytest.mark.parametrize("rule", ASKING, ids=lambda r: r.__name__)
def test_what_asks_the_core_keeps_the_rule(rule):
    assert list(rule(_read(ASKS))) == []


def test_what_compares_asks_nothing():
    assert list(comparing_asks_nothing(_read(COMPARES))) == []


@pytest.mark.parametrize("name", ["__main__.py", "checks.py"])
def test_what_reads_and_counts_cases_hands_numbers_on_as_they_are(name):
    tree = _read(f"tests/vectors/{name}").tree

    operators = [node.op for node in ast.walk(tree) if isinstance(node, ast.BinOp)]

    # Of types in annotations; the runner counts with `+= 1`.
    assert [op for op in operators if not isinstance(op, ast.BitOr)] == []


def test_there_are_no_other_modules():
    names = {path.name for path in FOLDER.glob("*.py")}

    assert names == {"__init__.py", "__main__.py", "calls.py", "checks.py", "compare.py"}


CORE = "from fl_core.privacy.accounting import epsilon\n"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (asking_computes_nothing, "rate = i['batch'] / i['records']"),
        (asking_computes_nothing, "total += x"),
        (asking_computes_nothing, "z = -x"),
        (asking_computes_nothing, "z = 2.0"),
        (asking_computes_nothing, "a = b if b > c else c"),
        (asking_computes_nothing, "worst = a or b"),
        (asking_computes_nothing, "f = lambda x: x"),
        (asking_calls_only_the_core, CORE + "worst = max(epsilon(e) for e in events)"),
        (asking_calls_only_the_core, "import math\nz = math.sqrt(x)"),
        (asking_calls_only_the_core, "import numpy as np\nz = np.sum(x)"),
        (asking_calls_only_the_core, "z = x.sum()"),
        (asking_calls_only_the_core, "z = pow(x, y)"),
        (asking_calls_only_the_core, "z = operator.mul(x, y)"),
        (asking_calls_only_the_core, "z = x.__add__(y)"),
        (asking_uses_public_names_of_the_core, "import dp_accounting"),
        (asking_uses_public_names_of_the_core, "from scipy.stats import binom"),
        (asking_uses_public_names_of_the_core, "from fl_core.privacy.accounting import _epsilon"),
        (asking_uses_public_names_of_the_core, "z = accounting._epsilon"),
        (asking_sees_no_expectation, "z = case['expect']['epsilon']"),
        (comparing_asks_nothing, "z = case['inputs']"),
        (comparing_asks_nothing, CORE),
    ],
)
def test_rule_finds_what_is_planted(rule, text):
    assert len(list(rule(planted(text)))) >= 1


@pytest.mark.parametrize("rule", ASKING, ids=lambda r: r.__name__)
def test_rule_lets_a_translation_pass(rule):
    text = CORE + "def asked(inputs):\n    return {'epsilon': epsilon(inputs['e'], **inputs)}"

    assert list(rule(planted(text))) == []
