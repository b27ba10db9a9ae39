"""A site's rows, their version, and the public split by a stable hash.

Rows keep the columns and the text they were read with: guessing types would turn a label ``180``
into a number and a text ``na`` into nothing, and the gate could no longer see what was wrong. The
version hash names exactly these rows in this order. It is a fingerprint of private data, so it
keys the site's own cache and never leaves the site. The split by words is for rows that are public
before any site exists (SOUNDNESS, rule 22); it cuts nothing from a site's rows.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from fl_core.errors import CampaignError

Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows as they were read.

    Attributes:
        frame: One row per example, columns as read, index 0..n-1; treat it as read-only.
        source: Where the rows come from, for error texts.
    """

    frame: pd.DataFrame
    source: str

    def __post_init__(self) -> None:
        expected = pd.RangeIndex(len(self.frame))
        if not self.frame.index.equals(expected):
            raise ValueError("rows need the index 0..n-1; use rows_of")

    def __len__(self) -> int:
        """Return the number of rows; it stays at the site."""
        return len(self.frame)


def rows_of(frame: pd.DataFrame, source: str) -> Rows:
    """Return a frame as rows, with its index renumbered from 0."""
    return Rows(frame=frame.reset_index(drop=True), source=source)


def take_rows(rows: Rows, positions: Positions) -> Rows:
    """Return the rows at ``positions``, in that order, renumbered from 0."""
    return rows_of(rows.frame.iloc[positions], rows.source)


def require_columns(rows: Rows, columns: Iterable[str]) -> None:
    """Refuse rows that lack a column.

    Raises:
        CampaignError: Names the missing columns and the columns that exist; for ``site start`` and
            ``simulate``. In a running campaign the gate says it with a rule name instead.
    """
    missing = [name for name in columns if name not in rows.frame.columns]
    if missing:
        found = ", ".join(repr(str(name)) for name in rows.frame.columns) or "none"
        raise CampaignError(
            f"{rows.source} has no column {', '.join(map(repr, missing))}; its columns are {found}",
            hint="rename the column, or name it as `text` or `target` in the campaign's [task]",
        )


def require_rows(rows: Rows) -> None:
    """Refuse an empty source.

    Raises:
        CampaignError: There is not a single row.
    """
    if len(rows) == 0:
        raise CampaignError(
            f"{rows.source} holds no rows, at least one is needed",
            hint="point the site's config at a file with rows",
        )


def dataset_version(rows: Rows) -> str:
    """Return the SHA-256 of all cells, by column name and row order, as 64 hex digits.

    Columns count by name, so their order is free; rows count in order, because a stored verdict
    speaks of positions. Equal hashes mean equal data: the value stays at the site.
    """
    digest = hashlib.sha256()
    for name in sorted(rows.frame.columns, key=str):
        digest.update(_cell_bytes(str(name)))
        for cell in rows.frame[name].tolist():
            digest.update(_cell_bytes(cell))
    return digest.hexdigest()


def row_bytes(rows: Rows) -> list[bytes]:
    """Return the content of each row as bytes that no other content has, by column name.

    Equal bytes mean equal cells; neither position nor any other row has a part in them.
    """
    names = sorted(rows.frame.columns, key=str)
    columns = [rows.frame[name].tolist() for name in names]
    heads = [_cell_bytes(str(name)) for name in names]
    return [
        b"".join(head + _cell_bytes(cell) for head, cell in zip(heads, cells, strict=True))
        for cells in zip(*columns, strict=True)
    ]


def is_missing(cell: object) -> bool:
    """Say whether a cell holds nothing: None, NaN or pandas' NA; an empty text is not missing."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return True
    return isinstance(cell, float) and math.isnan(cell)


def is_filled(cell: object) -> bool:
    """Say whether a cell is such a text, and not a blank one."""
    return isinstance(cell, str) and is_text(cell) and bool(cell.strip())


def is_text(cell: object) -> bool:
    """Say whether a cell is a text that every tokenizer takes: a ``str`` that UTF-8 can encode.

    A lone surrogate, which JSON can spell, makes a tokenizer raise with the text in its message.
    """
    if not isinstance(cell, str):
        return False
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def words_hash(text: str) -> int:
    """Return SHA-256 of a text reduced to its words, as an integer.

    Words are the runs of ``[a-z0-9]`` in the lower-case text, joined by single blanks, so that
    punctuation and spacing do not send near copies to both sides of a split.
    """
    words = " ".join(_WORDS.findall(text.lower()))
    return int.from_bytes(hashlib.sha256(words.encode()).digest(), "big")


def _cell_bytes(cell: object) -> bytes:
    if is_missing(cell):
        return b"-"
    text = cell if isinstance(cell, str) else f"{type(cell).__name__}:{cell}"
    data = text.encode("utf-8", "surrogatepass")
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    return (b"s" if isinstance(cell, str) else b"o") + len(data).to_bytes(8, "big") + data
