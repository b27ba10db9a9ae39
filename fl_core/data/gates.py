"""The gate's verdict on a site's rows, from the results of single rules.

A rule is one of two things. A *row* rule looks at one row alone; a row that breaks it is kept out
and written to the site's quarantine, and nobody else hears of it. Dropping by such rules moves a
neighbouring dataset by one record at most, so the guarantee is unchanged (SOUNDNESS, rule 4). A
*set* rule looks at the rows together; if it breaks, or if any critical rule could not be judged,
the site declines and the names of these rules are all that leaves it (rules 17 and 20). So the
report never holds the names of row rules that only cost rows: "some row here has a bad date" would
be one exact bit about the data per rule. The set rules' own bit is outside the claim, and said so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fl_core.data.rows import Positions
from fl_core.updates.records import GateReport

REQUIRED_COLUMNS = "required_columns"
COLUMN_TYPES = "column_types"
TEXT_CELLS = "text_cells"
MINIMUM_ROWS = "minimum_rows"
UNIT_ID = "unit_id"
BUILT_IN = (REQUIRED_COLUMNS, COLUMN_TYPES, TEXT_CELLS, MINIMUM_ROWS, UNIT_ID)

Scope = Literal["row", "set"]
Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """One rule of a suite.

    Attributes:
        name: Public name, unique in the suite.
        scope: ``row`` drops rows, ``set`` makes the site decline.
        severity: Only ``critical`` has consequences; the rest warns locally.
    """

    name: str
    scope: Scope
    severity: Severity


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What one rule found.

    Attributes:
        name: The rule.
        outcome: ``crashed`` means that nothing is known about the rows.
        failing: Positions of the rows that break a row rule; empty for a set rule.
    """

    name: str
    outcome: Literal["passed", "failed", "crashed"]
    failing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class GateVerdict:
    """What the site does with its rows.

    Attributes:
        report: The only part that may leave the site.
        kept: Positions of the rows that may be trained on, ascending; empty if not passed.
        quarantine: Broken row rules by position, names sorted; stays at the site.
        warnings: Rules of lesser severity that broke or crashed, sorted; stay at the site.
    """

    report: GateReport
    kept: Positions
    quarantine: dict[int, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def judge(
    rules: Sequence[RuleSpec],
    results: Iterable[RuleResult],
    *,
    n_rows: int,
    minimum_rows: int,
    suite_sha256: str,
) -> GateVerdict:
    """Turn the results of all rules into one verdict.

    A rule of the suite without exactly one result counts as crashed, and so does a row rule that
    failed without naming rows: an engine that loses a rule must not let rows pass. Fewer kept rows
    than ``minimum_rows`` break the set rule of that name, also on an empty table, where every row
    rule passes.

    Args:
        rules: The suite's rules.
        results: At most one per rule, in any order; built-in row rules may be among them.
        n_rows: Rows that were judged.
        minimum_rows: The suite's public minimum of kept rows, >= 1.
        suite_sha256: Content hash of the suite.
    """
    found: dict[str, list[RuleResult]] = {}
    for result in results:
        found.setdefault(result.name, []).append(result)
    broken: set[str] = set()
    warnings: set[str] = set()
    reasons: dict[int, set[str]] = {}
    for rule in rules:
        result = _one_result(rule, found.get(rule.name, []))
        if result.outcome == "passed":
            continue
        if rule.severity != "critical":
            warnings.add(rule.name)
        elif result.outcome == "failed" and rule.scope == "row":
            for position in result.failing:
                reasons.setdefault(position, set()).add(rule.name)
        else:
            broken.add(rule.name)
    quarantine = {p: tuple(sorted(reasons[p])) for p in sorted(reasons)}
    kept = np.array([p for p in range(n_rows) if p not in quarantine], dtype=np.int64)
    if len(kept) < max(1, minimum_rows):
        broken.add(MINIMUM_ROWS)
    return GateVerdict(
        report=_report(suite_sha256, broken),
        kept=kept[:0] if broken else kept,
        quarantine=quarantine,
        warnings=tuple(sorted(warnings)),
    )


def refuse(broken: Iterable[str], *, suite_sha256: str) -> GateVerdict:
    """Return the verdict that a table cannot be judged at all, because of these set rules."""
    return GateVerdict(report=_report(suite_sha256, broken), kept=np.empty(0, dtype=np.int64))


def _one_result(rule: RuleSpec, results: Sequence[RuleResult]) -> RuleResult:
    if len(results) != 1:
        return RuleResult(rule.name, "crashed")
    result = results[0]
    if rule.scope == "row" and result.outcome == "failed" and not result.failing:
        return RuleResult(rule.name, "crashed")
    return result


def _report(suite_sha256: str, broken: Iterable[str]) -> GateReport:
    failed = tuple(sorted(set(broken)))
    return GateReport(suite_sha256=suite_sha256, passed=not failed, failed=failed)
