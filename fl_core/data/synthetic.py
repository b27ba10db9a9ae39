"""Texts that were made up, as rows: for audits, where no real row may be at stake."""

from collections.abc import Sequence

import pandas as pd

from fl_core.campaign.specs import TaskSpec
from fl_core.data.rows import Rows, rows_of


def text_rows(texts: Sequence[str], targets: Sequence[str], *, task: TaskSpec, source: str) -> Rows:
    """Return texts with their labels, or answers, in the columns of a task."""
    return rows_of(pd.DataFrame({task.text: list(texts), task.target: list(targets)}), source)
