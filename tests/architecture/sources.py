"""Every module of the project, read and parsed once, and what the rules say about one of them.

A rule takes one module and returns what is wrong with it, so the same rule runs over the project
and over planted violations that it must find.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fl_core", "tasks", "flows")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One module: its path from the project's root, its text and its tree."""

    path: str
    text: str
    tree: ast.Module = field(repr=False)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node

    def at(self, node: ast.AST) -> str:
        return f"{self.path}:{node.lineno}"


Rule = Callable[[Source], Iterator[str]]


def planted(text: str, path: str = "fl_core/planted.py") -> Source:
    """Return a module that exists in a test only."""
    return Source(path=path, text=text, tree=ast.parse(text))


@cache
def project() -> tuple[Source, ...]:
    """Return all modules of the three packages, sorted by path."""
    paths = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    return tuple(planted(p.read_text("utf-8"), p.relative_to(ROOT).as_posix()) for p in paths)


@cache
def everything() -> tuple[Source, ...]:
    """Return the project's modules and those of tests, examples, benchmarks and documents."""
    folders = ("tests", "examples", "benchmarks", "docs", "deployments", "docker")
    paths = sorted(path for name in folders for path in (ROOT / name).rglob("*.py"))
    others = (planted(p.read_text("utf-8"), p.relative_to(ROOT).as_posix()) for p in paths)
    return (*project(), *others)


def broken(rule: Rule, sources: tuple[Source, ...] | None = None) -> list[str]:
    """Return every violation of a rule, by default over the three packages."""
    return [found for source in sources or project() for found in rule(source)]


def body_lines(function: Function) -> int:
    """Return a function's length without its docstring."""
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is None:
        return length
    docstring = function.body[0]
    return length - (docstring.end_lineno - docstring.lineno + 1)


def imports(source: Source) -> Iterator[tuple[str, ast.AST]]:
    """Yield the full name of every module that is imported, anywhere in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of a chain of names, or an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""
