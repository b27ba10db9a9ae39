"""The caps on files, functions and parameters, and that docstrings are there (STYLE, 1, 4, 5)."""

import ast
import re
import statistics

import pytest
from sources import Source, body_lines, broken, everything, planted, project

FILE_LINES = 400
MEDIAN_FILE_LINES = 150
FUNCTION_LINES = 60
P90_FUNCTION_LINES = 25
PARAMETERS = 5

# A longer signature carries its reason on the line of its `def`, for instance that it is given by a
# library or is a command's options.
_REASON = re.compile(r"# noqa: PLR0913(?:, \w+)*\s+\S.{8,}")


def files_are_short(source: Source):
    if len(source.lines) > FILE_LINES:
        yield f"{source.path} has {len(source.lines)} lines, at most {FILE_LINES}"


def functions_are_short(source: Source):
    for function in source.functions:
        if (length := body_lines(function)) > FUNCTION_LINES:
            yield f"{source.at(function)} {function.name} has {length} lines"


def parameters_are_few(source: Source):
    for function in source.functions:
        found = len(_parameters(function))
        if found > PARAMETERS and not _REASON.search(source.lines[function.lineno - 1]):
            yield f"{source.at(function)} {function.name} takes {found} parameters"


def booleans_are_named(source: Source):
    # Typer makes an option of every parameter, so the command line names them all.
    if source.path.startswith("flows/cli/"):
        return
    for function in source.functions:
        for argument in [*function.args.posonlyargs, *function.args.args]:
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "bool":
                yield f"{source.at(function)} {function.name} takes {argument.arg} by position"


def public_names_have_docstrings(source: Source):
    if ast.get_docstring(source.tree) is None:
        yield f"{source.path} has no docstring"
    yield from _undocumented(source, source.tree)


def packages_hold_no_logic(source: Source):
    if not source.path.endswith("/__init__.py") or source.path == "fl_core/__init__.py":
        return
    for node in source.tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not isinstance(node, ast.Import | ast.ImportFrom):
            yield f"{source.at(node)} is more than a docstring and imports"


def _parameters(function):
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return [a for position, a in enumerate(named) if position or a.arg not in {"self", "cls"}]


def _undocumented(source, scope):
    for node in scope.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not _is_overload(node):
            yield f"{source.at(node)} {node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(source, node)


def _is_overload(node):
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


RULES = [
    files_are_short,
    functions_are_short,
    parameters_are_few,
    booleans_are_named,
    public_names_have_docstrings,
    packages_hold_no_logic,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_no_module_breaks_the_rule(rule):
    assert broken(rule) == []


@pytest.mark.parametrize("rule", [files_are_short, functions_are_short], ids=lambda r: r.__name__)
def test_tests_examples_and_benchmarks_keep_the_caps_too(rule):
    assert broken(rule, everything()) == []


def test_nine_functions_in_ten_are_short():
    lengths = sorted(body_lines(f) for source in project() for f in source.functions)

    assert lengths[int(0.9 * len(lengths))] <= P90_FUNCTION_LINES


def test_half_of_the_files_are_short(record_property):
    median = statistics.median(len(source.lines) for source in project())
    record_property("median_file_lines", median)

    assert median <= MEDIAN_FILE_LINES


LONG = "def f():\n" + "    x = 1\n" * 60
DOCUMENTED = 'def f():\n    """Do."""\n' + "    x = 1\n" * 59
MANY = "def f(a, b, *, c, d, e, g): ...  {}\n"


@pytest.mark.parametrize(
    ("rule", "text", "count"),
    [
        (files_are_short, "x = 1\n" * 401, 1),
        (files_are_short, "x = 1\n" * 400, 0),
        (functions_are_short, LONG, 1),
        (functions_are_short, DOCUMENTED, 0),
        (parameters_are_few, MANY.format(""), 1),
        (parameters_are_few, MANY.format("# noqa: PLR0913"), 1),
        (parameters_are_few, MANY.format("# noqa: PLR0913  a protocol of peft's"), 0),
        (parameters_are_few, "class C:\n    def f(self, a, b, c, d, e): ...", 0),
        (booleans_are_named, "def f(a, flag: bool): ...", 1),
        (booleans_are_named, "def f(a, *, flag: bool): ...", 0),
        (public_names_have_docstrings, "def f(): ...", 2),
        (public_names_have_docstrings, '"""m."""\nclass C:\n    """c."""\n    def f(self): ...', 1),
        (public_names_have_docstrings, '"""m."""\ndef _f(): ...', 0),
    ],
)
def test_rule_finds_what_is_planted(rule, text, count):
    assert len(list(rule(planted(text)))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [('"""p."""\nfrom fl_core.x import y\n', 0), ('"""p."""\nx = 1\n', 1), ("if a:\n    b()", 1)],
)
def test_logic_in_a_package_is_found(text, count):
    assert len(list(packages_hold_no_logic(planted(text, "fl_core/x/__init__.py")))) == count
