"""The one module that touches Great Expectations; import it lazily, it takes seconds.

Nothing that the library returns may leave the site, in any result format: results carry cell
values, exception texts carry them too (``Could not convert 'Mrs Miller' to numeric``), and every
result's metadata holds a fingerprint of the whole frame. So what comes out of here is our own
projection: rule, outcome, positions. A failed check and a crashed one look the same in the library
(``success`` false); they are told apart by ``exception_info``, which is flat when nothing was
raised and nested under a metric's id when something was (great_expectations issue 10849).
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import pandas as pd

from fl_core.data.gates import RuleResult

# great_expectations < 1.24 sends usage statistics unless told not to before its import.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics import ColumnMapMetricProvider
from great_expectations.expectations.metrics.map_metric_provider import (
    column_condition_partial,
)

logger = logging.getLogger(__name__)

# Positions without values; any other format returns cells (great_expectations issue 8780).
_LOCAL = {
    "result_format": "COMPLETE",
    "partial_unexpected_count": 0,
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class DaysBetween(ColumnMapMetricProvider):  # type: ignore[misc]
    """Whether a text is a day of the calendar, ``YYYY-MM-DD``, between two days, both included."""

    condition_metric_name = "column_values.days_between"
    condition_value_keys = ("first", "last")

    @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: "pd.Series[Any]", first: str, last: str, **_: Any) -> Any:  # noqa: N805 - the decorator passes the class
        bounds = date.fromisoformat(first), date.fromisoformat(last)
        return pd.Series([_is_day(cell, bounds) for cell in column], index=column.index, dtype=bool)


class ExpectColumnValuesToBeDaysBetween(ColumnMapExpectation):  # type: ignore[misc]
    """Expect every text of a column to be a day from ``first`` to ``last``.

    The library's own ``between`` raises on columns of text, and its ``strftime`` check takes
    ``2004-2-1``, so that two spellings of a day would pass.
    """

    first: str
    last: str

    map_metric = "column_values.days_between"
    success_keys = ("first", "last", "mostly")


def check_rows(frame: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> list[RuleResult]:
    """Run expectations over a frame and return one result per expectation, in their order.

    A rule that the library loses is missing from the list; the verdict counts it as crashed.

    Args:
        frame: Columns of texts or missing cells, index 0..n-1, n >= 1.
        expectations: ``type``, ``kwargs``, ``severity`` and ``meta`` with ``rule`` and ``scope``.
    """
    names = [str(expectation["meta"]["rule"]) for expectation in expectations]
    with _silence():
        results = _checked(frame, expectations)
    for result in results:
        if result.outcome == "crashed":
            logger.error("gate check crashed rule=%s", result.name)
    return sorted(results, key=lambda result: names.index(result.name))


def _checked(frame: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> list[RuleResult]:
    try:
        return [_project(result) for result in _validate(frame, expectations)]
    except Exception as error:  # noqa: BLE001 - any error of the library may hold cell values
        logger.warning("gate check raised error=%s", type(error).__name__)
    if len(expectations) == 1:
        return [RuleResult(str(expectations[0]["meta"]["rule"]), "crashed")]
    # One check took all others down (``max`` over texts with a missing one does); alone, only
    # the guilty one crashes.
    return [result for single in expectations for result in _checked(frame, [single])]


def _validate(frame: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> list[Any]:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
        .get_batch(batch_parameters={"dataframe": frame})
    )
    suite = gx.ExpectationSuite(name="gate", expectations=[dict(e) for e in expectations])
    return list(batch.validate(suite, result_format=_LOCAL).results)


def _project(result: Any) -> RuleResult:
    meta = result.expectation_config.meta
    name, is_row_rule = str(meta["rule"]), meta["scope"] == "row"
    info = result.exception_info or {}
    # Flat with a flag when nothing was raised; one entry per metric when something was.
    if info.get("raised_exception", bool(info)) or not result.result:
        return RuleResult(name, "crashed")
    failing = tuple(int(i) for i in result.result.get("unexpected_index_list") or ())
    if is_row_rule:
        # A row rule is decided by its rows alone, whatever share of them the library tolerates.
        if result.result.get("unexpected_count") != len(failing):
            return RuleResult(name, "crashed")
        return RuleResult(name, "failed" if failing else "passed", failing)
    return RuleResult(name, "passed" if result.success else "failed")


def _is_day(cell: object, bounds: tuple[date, date]) -> bool:
    if not isinstance(cell, str) or not _DAY.fullmatch(cell):
        return False
    try:
        day = date.fromisoformat(cell)
    except ValueError:
        return False
    return bounds[0] <= day <= bounds[1]


@contextmanager
def _silence() -> Iterator[None]:
    # The library and pandas log and warn with cell values in the text. Some of the library's
    # loggers set levels of their own, so records are stopped at its root, not by level.
    library = logging.getLogger("great_expectations")
    before = library.handlers, library.propagate
    library.handlers, library.propagate = [logging.NullHandler()], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.handlers, library.propagate = before
