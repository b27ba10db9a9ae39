"""Read a site's rows from parquet, JSON lines or CSV, as text.

No type is guessed: a label ``180`` stays the text ``180``, a text ``na`` stays a text, and a
number in JSON keeps its digits. What is no text in the file either (a list, bytes) is left as it
is, for the gate to see. An error names file, line and remedy and never holds a line: the library's
errors do, so they are not chained.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pandas as pd

from fl_core.data.rows import Rows, rows_of
from fl_core.errors import CampaignError

_LINE = re.compile(r"\bline (\d+)\b")


def read_rows(path: Path) -> Rows:
    """Read all rows of a file; the suffix says the format.

    Cells are ``str`` or, where the file holds nothing, None; an empty or absent CSV field is
    an empty text.
    Times in parquet become ISO 8601, a midnight only its day. A file without rows gives no rows
    (``require_rows`` refuses them at ``site start``; in a campaign the gate declines).

    Raises:
        CampaignError: No such file, unknown suffix, or not what its suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CampaignError(
            f"{path} ends in {path.suffix!r}, expected one of {', '.join(sorted(_READERS))}",
            hint="save the rows as parquet, JSON lines or CSV",
        )
    if not path.is_file():
        raise CampaignError(
            f"no file of rows at {path}",
            hint="correct the name: `data` in a site's config, or the option that named the file",
        )
    try:
        frame = reader(path)
    except OSError as error:
        raise CampaignError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}",
            hint="check that the site's user may read the file",
        ) from None
    if not frame.columns.is_unique:
        raise CampaignError(f"{path} has two columns of one name; rename one of them")
    return rows_of(frame, str(path))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=object, na_filter=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except pd.errors.ParserError as error:
        # Only the line number is taken from the library's text.
        found = _LINE.search(str(error))
        where = f" at line {found[1]}" if found else ""
        raise CampaignError(
            f"{path} is not a regular CSV{where}; every line needs as many fields as the header",
            hint="quote fields that hold commas or line breaks",
        ) from None
    if not isinstance(frame.index, pd.RangeIndex):
        # pandas takes surplus first fields for row names without a word.
        raise CampaignError(
            f"{path} has more fields in a row than names in its header",
            hint="name every column, and quote fields that hold commas",
        )
    return frame


def _read_jsonl(path: Path) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    records.append(_json_object(line, f"{path}, line {number}"))
                    columns.update(dict.fromkeys(records[-1]))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    # One list per column: pandas would guess types from records, and fails on lone surrogates.
    cells = {name: [_json_cell(r.get(name)) for r in records] for name in columns}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object) for name, values in cells.items()},
        index=pd.RangeIndex(len(records)),
    )


def _json_object(line: str, where: str) -> dict[str, Any]:
    problem = ""
    try:
        # Numbers keep their digits: 180.0 must not become 180.
        value = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        problem = f"no JSON from column {error.colno} on"
    except RecursionError:
        problem = "JSON that is nested too deeply"
    else:
        if isinstance(value, dict):
            return value
        problem = f"a JSON {type(value).__name__}"
    raise CampaignError(
        f"{where} holds {problem}, expected one object per line",
        hint="correct this line, or write the file again as JSON lines",
    )


def _json_cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file, never a folder of parts: a column must not come from a path's name.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CampaignError(
            f"{path} is not a parquet file that can be read ({type(error).__name__})",
            hint="write the file again, or save the rows as CSV",
        ) from None
    frame = pd.DataFrame(index=pd.RangeIndex(table.num_rows))
    for number, name in enumerate(table.column_names):
        if name in frame.columns:
            raise CampaignError(f"{path} has two columns named {name!r}; rename one of them")
        cells = [_parquet_cell(cell) for cell in table.column(number).to_pylist()]
        frame[name] = pd.Series(cells, dtype=object, index=frame.index)
    return frame


def _parquet_cell(value: Any) -> Any:
    if isinstance(value, datetime):
        is_midnight = value.time() == time() and value.tzinfo is None
        return value.date().isoformat() if is_midnight else value.isoformat()
    if value is None or isinstance(value, str | bytes | list | tuple | dict):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _not_utf8(path: Path, error: UnicodeDecodeError) -> CampaignError:
    return CampaignError(
        f"{path} is not UTF-8 (byte {error.start} of a block)", hint="save the file as UTF-8"
    )


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
