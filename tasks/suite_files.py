"""Suites of expectations: files that say what rows a campaign takes.

A suite is one JSON file, and its SHA-256 over the bytes is what a campaign freezes, so the rules
cannot change under a running campaign. Nothing here imports Great Expectations: the coordinator
locks hashes without it. The format:

    name          the file's name without ``.json``
    columns       columns that must be there, each holding text
    minimum_rows  public least number of rows that are kept, >= 1
    expectations  each as Great Expectations takes it (``type``, ``kwargs``), with a ``severity``
                  (``critical``, ``warning``, ``info``) and ``meta`` = {``rule``, ``scope``}

``rule`` is the public name: of a broken set rule it is all that leaves the site. ``scope`` is
``row`` (a row that breaks it goes to quarantine) or ``set`` (the site declines). Only expectations
that look at one row alone may have scope ``row`` (SOUNDNESS, rule 4): removing duplicates, say,
would let one record bring another in. A suite is a template: ``$text``, ``$target`` and ``$labels``
stand for the campaign's own columns and labels, so one suite serves many campaigns.
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from fl_core.artifacts.documents import Document, sha256_hex
from fl_core.campaign.complaints import complaint_of
from fl_core.campaign.guarantees import ROW
from fl_core.campaign.specs import NamedContent, TaskSpec
from fl_core.data.gates import BUILT_IN, TEXT_CELLS, RuleSpec, Scope, Severity
from fl_core.errors import CampaignError, PolicyRefused

ROW_EXPECTATIONS = frozenset(
    {
        "expect_column_value_lengths_to_be_between",
        "expect_column_value_lengths_to_equal",
        "expect_column_values_to_be_days_between",
        "expect_column_values_to_be_in_set",
        "expect_column_values_to_be_null",
        "expect_column_values_to_match_regex",
        "expect_column_values_to_match_strftime_format",
        "expect_column_values_to_not_be_in_set",
        "expect_column_values_to_not_be_null",
        "expect_column_values_to_not_match_regex",
    }
)
ROW_RULE_ON_CELLS = RuleSpec(name=TEXT_CELLS, scope="row", severity="critical")

_TEMPLATE = re.compile(r"\$[a-z]+")
# With these a row rule would depend on other rows, or skip some.
_SET_KWARGS = ("mostly", "row_condition", "condition_parser")
_COLUMN_KWARGS = ("column", "column_A", "column_B", "column_list", "column_set")


class RuleMeta(Document):
    """What a rule is called and what it looks at."""

    rule: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    scope: Scope


class Expectation(Document):
    """One expectation; ``kwargs`` are Great Expectations' own, with ``$`` templates."""

    type: Annotated[str, Field(pattern=r"^expect_[a-z0-9_A-Z]+$")]
    kwargs: dict[str, Any]
    severity: Severity
    meta: RuleMeta

    @model_validator(mode="after")
    def _row_rules_see_one_row(self) -> Self:
        if self.meta.scope == "row" and self.type not in ROW_EXPECTATIONS:
            msg = f"{self.type} does not look at one row alone; its scope is 'set'"
            raise ValueError(msg)
        found = [name for name in _SET_KWARGS if name in self.kwargs]
        if self.meta.scope == "row" and found:
            msg = f"{found[0]} makes rule {self.meta.rule} look at more than one row; remove it"
            raise ValueError(msg)
        return self


class SuiteFile(Document):
    """A suite as its file holds it; the module's docstring says what the fields mean."""

    name: str
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    minimum_rows: Annotated[int, Field(ge=1)]
    expectations: Annotated[tuple[Expectation, ...], Field(min_length=1, max_length=250)]

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [e.meta.rule for e in self.expectations]
        twice = sorted({n for n in names if names.count(n) > 1} | (set(names) & set(BUILT_IN)))
        if twice:
            msg = f"rule names must be unique and not built in: {', '.join(twice)}"
            raise ValueError(msg)
        for expectation in self.expectations:
            unlisted = _columns_of(expectation.kwargs) - set(self.columns)
            if unlisted:
                msg = f"rule {expectation.meta.rule} reads columns that `columns` does not list"
                raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite with its hash.

    Attributes:
        sha256: Content hash of the file's bytes.
        file: What the file says, templates unresolved.
    """

    sha256: str
    file: SuiteFile

    @property
    def name(self) -> str:
        """Name of the suite."""
        return self.file.name

    @property
    def rules(self) -> tuple[RuleSpec, ...]:
        """All rules that must have a result: the suite's own, and that cells hold text."""
        own = (
            RuleSpec(name=e.meta.rule, scope=e.meta.scope, severity=e.severity)
            for e in self.file.expectations
        )
        return (ROW_RULE_ON_CELLS, *own)


def suite_names() -> list[str]:
    """Return the names of the suites that come with fedloom, sorted."""
    return sorted(path.stem for path in _shipped_folder().glob("*.json"))


def suite_path(name: str, *, folder: Path | None = None) -> Path:
    """Return the file of a suite.

    Args:
        name: Name of the suite, without ``.json``.
        folder: Looked into first; None means the suites that come with fedloom alone.

    Raises:
        CampaignError: There is no such file; the text names those that exist.
    """
    places = [_shipped_folder(), *([] if folder is None else [folder])]
    known = {path.stem: path for place in places for path in place.glob("*.json")}
    if name not in known:
        where = " or ".join(str(place) for place in reversed(places))
        raise CampaignError(
            f"gate {name!r} is no suite in {where}; there are {', '.join(sorted(known)) or 'none'}",
            hint="name one of these suites as the campaign's gate",
        )
    return known[name]


def suite_sha256(name: str, *, folder: Path | None = None) -> str:
    """Return the content hash of a suite's file; what a campaign locks."""
    return sha256_hex(suite_path(name, folder=folder).read_bytes())


def load_suite(name: str, *, folder: Path | None = None) -> Suite:
    """Read a suite and check its form.

    Raises:
        CampaignError: No such suite, not JSON, or a field is wrong; names file and field.
    """
    path = suite_path(name, folder=folder)
    data = path.read_bytes()
    try:
        file = SuiteFile.model_validate_json(data)
    except ValidationError as error:
        raise CampaignError(
            f"suite {path.name}: {complaint_of(error, SuiteFile, whole='file')}",
            hint="docs/adding-parts describes the format of a suite",
        ) from error
    if file.name != name:
        raise CampaignError(
            f"suite {path.name} says its name is {file.name!r}, expected {name!r}; make them equal"
        )
    return Suite(sha256=sha256_hex(data), file=file)


def load_locked_suite(gate: NamedContent, *, folder: Path | None = None) -> Suite:
    """Read the suite that a locked campaign froze.

    Raises:
        CampaignError: No such suite, or it is malformed.
        PolicyRefused: The file here is not the one the campaign froze.
    """
    suite = load_suite(gate.name, folder=folder)
    if suite.sha256 != gate.sha256:
        raise PolicyRefused(
            f"suite {gate.name!r} here has hash {suite.sha256}, the campaign froze {gate.sha256}",
            hint="install the version of fedloom, or the suite's file, that the campaign locked",
        )
    return suite


def required_columns(suite: Suite, task: TaskSpec, *, unit: str = ROW) -> tuple[str, ...]:
    """Return the columns that rows must have, each once: the suite's in its order, then the unit's.

    Args:
        suite: The suite.
        task: Fills its templates.
        unit: ``row``, or the column of the campaign's unit, which no suite has to list.
    """
    columns = _resolved(list(suite.file.columns), _values(suite, task))
    return tuple(dict.fromkeys([*columns, *([] if unit == ROW else [unit])]))


def resolve_expectations(suite: Suite, task: TaskSpec) -> list[dict[str, Any]]:
    """Return the expectations as Great Expectations takes them, templates filled in from a task.

    Raises:
        CampaignError: A template is unknown, or asks for labels that the task does not have.
    """
    values = _values(suite, task)
    return [
        {**json.loads(e.model_dump_json()), "kwargs": _resolved(e.kwargs, values)}
        for e in suite.file.expectations
    ]


def _values(suite: Suite, task: TaskSpec) -> dict[str, Any]:
    values: dict[str, Any] = {"$text": task.text, "$target": task.target}
    if task.labels:
        values["$labels"] = list(task.labels)
    unknown = _templates(suite.file.model_dump()) - set(values)
    if unknown:
        raise CampaignError(
            f"suite {suite.name!r} asks for {', '.join(sorted(unknown))}, which a "
            f"{task.kind} task does not have; it has {', '.join(sorted(values))}",
            hint="choose a suite for this kind of task",
        )
    return values


def _resolved(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, str):
        return values.get(value, value)
    if isinstance(value, list | tuple):
        return [_resolved(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _resolved(item, values) for key, item in value.items()}
    return value


def _templates(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value} if _TEMPLATE.fullmatch(value) else set()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*(_templates(item) for item in value))
    return set()


def _columns_of(kwargs: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in _COLUMN_KWARGS:
        value = kwargs.get(name, [])
        found |= {value} if isinstance(value, str) else set(value)
    return found


def _shipped_folder() -> Path:
    return Path(str(files("tasks") / "suites"))
