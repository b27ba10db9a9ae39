"""The gate at a site: rows and a suite in, one verdict out, judged once per dataset version.

What can be said in plain pandas is checked first (columns, their types, cells that are no text),
because the library crashes or passes wrongly on such tables. Great Expectations is imported only
when a verdict is not stored yet, so a later round pays nothing for it. The verdict is stored at the
site and read back in every later round: judging again in each round would let the coordinator see
one exact bit about the data as often as it asks (SOUNDNESS, rule 20). A crash is stored as well,
for the same reason.
"""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd

from fl_core.artifacts import keys
from fl_core.artifacts.documents import (
    Document,
    document_sha256,
    read_document,
    write_document,
)
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.guarantees import ROW
from fl_core.campaign.specs import TaskSpec
from fl_core.data.gates import (
    COLUMN_TYPES,
    REQUIRED_COLUMNS,
    TEXT_CELLS,
    UNIT_ID,
    GateVerdict,
    RuleResult,
    RuleSpec,
    judge,
    refuse,
)
from fl_core.data.rows import Mask, Positions, Rows, dataset_version, is_missing, is_text
from fl_core.data.units import has_unit
from fl_core.errors import ObjectMissing
from fl_core.updates.records import GateReport
from tasks.suite_files import Suite, required_columns, resolve_expectations

logger = logging.getLogger(__name__)


class StoredVerdict(Document):
    """A verdict as the site keeps it; positions and reasons never leave the site.

    Attributes:
        report: What may leave.
        kept: Positions of rows that may be trained on.
        quarantine: Rule names by position.
        warnings: Names of lesser rules that broke.
    """

    report: GateReport
    kept: tuple[int, ...]
    quarantine: dict[int, tuple[str, ...]]
    warnings: tuple[str, ...]


class _UnitTask(Document):
    """What a verdict was asked for, where rows need a unit as well."""

    task: TaskSpec
    unit: str


def run_gate(rows: Rows, suite: Suite, *, task: TaskSpec, unit: str = ROW) -> GateVerdict:
    """Judge rows by a suite, whatever the rows look like; no row can make it raise.

    Args:
        rows: The rows.
        suite: The suite.
        task: Fills the suite's templates.
        unit: ``row``, or the column of the campaign's unit: it is required then, and a row without
            an id in it goes to quarantine by the rule ``unit_id`` (SOUNDNESS, rule 3).

    Raises:
        CampaignError: The suite does not fit the task; independent of the rows.
    """
    expectations = resolve_expectations(suite, task)
    columns = list(required_columns(suite, task, unit=unit))
    if not set(columns) <= set(rows.frame.columns) or not rows.frame.columns.is_unique:
        return refuse([REQUIRED_COLUMNS], suite_sha256=suite.sha256)
    frame = rows.frame[columns]
    if not all(_may_hold_text(frame[name]) for name in columns):
        return refuse([COLUMN_TYPES], suite_sha256=suite.sha256)
    judged = np.flatnonzero(_rows_of_text(frame))
    rules, results = list(suite.rules), [_row_result(TEXT_CELLS, len(rows), judged)]
    if unit != ROW:
        rules.append(RuleSpec(UNIT_ID, "row", "critical"))
        results.append(_row_result(UNIT_ID, len(rows), np.flatnonzero(has_unit(rows, unit))))
    if len(judged):
        from tasks.expectations import check_rows

        # A rule on all columns means the suite's own; the unit's is ours.
        own = frame[list(required_columns(suite, task))]
        checked = check_rows(own.iloc[judged].reset_index(drop=True), expectations)
        results += [_moved(result, judged) for result in checked]
    else:
        # On an empty table every row rule passes; the minimum of rows decides.
        results += [RuleResult(str(e["meta"]["rule"]), "passed") for e in expectations]
    return judge(
        rules,
        results,
        n_rows=len(rows),
        minimum_rows=suite.file.minimum_rows,
        suite_sha256=suite.sha256,
    )


def cached_gate(
    rows: Rows, suite: Suite, *, task: TaskSpec, store: ObjectStore, unit: str = ROW
) -> GateVerdict:
    """Return the verdict on these rows, judged the first time and read from ``store`` afterwards.

    Args:
        rows: The site's rows.
        suite: The suite that the campaign froze.
        task: The campaign's task; it fills the suite's templates, so it is part of the key.
        store: The *site's own* store; the keys hold a fingerprint of the rows.
        unit: As for ``run_gate``; part of the key as well.

    Raises:
        CampaignError: The suite does not fit the task.
        ObjectCorrupt: The stored verdict is not one.
    """
    asked = task if unit == ROW else _UnitTask(task=task, unit=unit)
    key = keys.gate_verdict(dataset_version(rows), suite.sha256, document_sha256(asked))
    try:
        stored = read_document(store, key, StoredVerdict)
    except ObjectMissing:
        stored = write_document(store, key, _to_stored(run_gate(rows, suite, task=task, unit=unit)))
        _log(suite, stored)
    return GateVerdict(
        report=stored.report,
        kept=np.array(stored.kept, dtype=np.int64),
        quarantine=dict(stored.quarantine),
        warnings=stored.warnings,
    )


def write_quarantine(folder: Path, rows: Rows, verdict: GateVerdict) -> Path | None:
    """Write the quarantined rows with their reasons, for the site's owner only.

    The file is ``quarantine-<version>.jsonl``, readable by its owner alone, one row per line:
    ``row`` (number from 1), ``rules`` and ``cells``. Writing it again gives the same file.

    Returns:
        The file, or None if no row is quarantined.
    """
    if not verdict.quarantine:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"quarantine-{dataset_version(rows)[:12]}.jsonl"
    partial = target.with_suffix(f".{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for position, names in sorted(verdict.quarantine.items()):
            cells = rows.frame.iloc[position].to_dict()
            line = {"row": position + 1, "rules": names, "cells": cells}
            # Escaped to ASCII, since a quarantined cell may hold what UTF-8 cannot.
            file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
    partial.replace(target)
    return target


def _may_hold_text(column: "pd.Series[str]") -> bool:
    return pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)


def _rows_of_text(frame: pd.DataFrame) -> Mask:
    # A missing cell is left to the suite, which may allow it in some columns.
    good = np.ones(len(frame), dtype=np.bool_)
    for name in frame.columns:
        good &= np.array(
            [is_missing(cell) or is_text(cell) for cell in frame[name].tolist()], dtype=np.bool_
        )
    return good


def _row_result(name: str, n_rows: int, passing: Positions) -> RuleResult:
    failing = tuple(sorted(set(range(n_rows)) - set(passing.tolist())))
    return RuleResult(name, "failed" if failing else "passed", failing)


def _moved(result: RuleResult, judged: Positions) -> RuleResult:
    return RuleResult(result.name, result.outcome, tuple(int(judged[i]) for i in result.failing))


def _to_stored(verdict: GateVerdict) -> StoredVerdict:
    return StoredVerdict(
        report=verdict.report,
        kept=tuple(verdict.kept.tolist()),
        quarantine=verdict.quarantine,
        warnings=verdict.warnings,
    )


def _log(suite: Suite, stored: StoredVerdict) -> None:
    report, failed = stored.report, ",".join(stored.report.failed) or "-"
    logger.info("gate judged suite=%s passed=%s failed=%s", suite.name, report.passed, failed)
    for name in stored.warnings:
        logger.warning("gate warning suite=%s rule=%s", suite.name, name)
    logger.debug("gate rows kept=%d quarantined=%d", len(stored.kept), len(stored.quarantine))
