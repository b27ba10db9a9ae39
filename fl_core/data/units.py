"""Rows of one unit: whom they belong to, and how many of them take part.

Where a campaign protects a person instead of a row, a column holds the person's id, and all rows
with the same text there are one *unit*: bounded in number, clipped together and drawn together
(SOUNDNESS, rule 3). A site holds no rows back: a release is evaluated on public rows of the
coordinator, so no unit is ever on two sides of a split. An id is the cell's exact text: no case is
folded, no blank cut, no leading zero dropped, so two spellings of one person are two units, and the
owner of the rows has to write ids alike. A row without an id belongs to nobody who could be
protected and never takes part.

Which rows of a unit take part is a draw by a secret key of the site, made once: it depends on the
key and on the unit's own rows, never on a round, on the order of a file, or on anybody else's rows.
So removing one unit moves no row of another one in or out (rule 1), and the rows that were left out
of round 1 do not come in by round 2.
"""

import hashlib
import hmac
from collections import Counter

import numpy as np
import numpy.typing as npt

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ROW
from fl_core.data.prompts import EncodedRows, Tokenizer, encode_rows, usable_rows
from fl_core.data.rows import (
    Mask,
    Positions,
    Rows,
    is_filled,
    require_columns,
    row_bytes,
    take_rows,
)
from fl_core.errors import CampaignError

KEY_BYTES = 32
_DRAW = b"fedloom unit draw"


def unit_of(campaign: Campaign) -> str:
    """Return whom a campaign protects: ``row``, or the column that names a person."""
    record = campaign.privacy.record
    return ROW if record is None else record.unit


def require_unit(rows: Rows, unit: str, max_rows: int = 1) -> None:
    """Check that rows can be counted by a unit, before a ledger is begun that counts it for ever.

    Raises:
        CampaignError: There is no such column, no row has a value in it, or a bound other than 1
            is given for rows.
    """
    if unit == ROW and max_rows != 1:
        raise CampaignError(
            f"{max_rows} rows per unit are asked for and the unit is the row; "
            "name a column as unit, or leave the bound at 1"
        )
    if unit != ROW and unit not in rows.frame.columns:
        found = ", ".join(repr(str(name)) for name in rows.frame.columns) or "none"
        raise CampaignError(
            f"{rows.source} has no column {unit!r}, the unit; its columns are {found}",
            hint="name the column that says whose a row is",
        )
    if unit != ROW and not has_unit(rows, unit).any():
        raise CampaignError(
            f"no row of {rows.source} has a value in column {unit!r}",
            hint="name the column that says whose a row is",
        )


def count_units(rows: Rows, unit: str) -> int:
    """Return how many rows or people a file holds; private, for the site's own screen only."""
    taking_part = has_unit(rows, unit)
    return int(taking_part.sum()) if unit == ROW else rows.frame[unit][taking_part].nunique()


def has_unit(rows: Rows, unit: str) -> Mask:
    """Say for each row whether its unit can be told; each row by itself.

    Raises:
        CampaignError: There is no such column.
    """
    if unit == ROW:
        return np.ones(len(rows), dtype=np.bool_)
    require_columns(rows, [unit])
    return np.array([is_filled(cell) for cell in rows.frame[unit].tolist()], dtype=np.bool_)


def unit_numbers(rows: Rows, unit: str) -> npt.NDArray[np.int64]:
    """Return a number per row, ``(n,)``, equal where the unit's text is.

    Raises:
        CampaignError: There is no such column.
        ValueError: A row has no unit; no values are named.
    """
    if not has_unit(rows, unit).all():
        # A programmer's slip, since the gate has quarantined such rows: it must not pass unseen.
        raise ValueError(f"rows without a {unit!r} have no unit; drop them with has_unit first")
    if unit == ROW:
        return np.arange(len(rows), dtype=np.int64)
    _, numbers = np.unique(np.array(rows.frame[unit].tolist(), dtype=object), return_inverse=True)
    return numbers.astype(np.int64)


def bounded_rows(rows: Rows, *, unit: str, max_rows: int, key: bytes) -> Positions:
    """Return the positions of the rows that take part, ascending: at most ``max_rows`` per unit.

    Rows without a unit are left out. Of a unit with more rows those with the smallest
    HMAC-SHA256(key, content, occurrence) take part, a uniform draw without replacement to anybody
    without the key; equal rows of one unit differ by their occurrence. The draw of a unit depends
    on its own rows and the key alone.

    Args:
        rows: Rows as they were read.
        unit: ``row``, which bounds nothing, or a column.
        max_rows: Bound of one unit, >= 1; public.
        key: The site's secret, ``KEY_BYTES`` long.

    Raises:
        CampaignError: There is no such column.
    """
    _require_key(key)
    if unit == ROW:
        return np.arange(len(rows), dtype=np.int64)
    places = np.flatnonzero(has_unit(rows, unit))
    contents, cells = row_bytes(take_rows(rows, places)), rows.frame[unit].tolist()
    seen: Counter[bytes] = Counter()
    by_unit: dict[str, list[tuple[bytes, int]]] = {}
    for place, content in zip(places.tolist(), contents, strict=True):
        # The content holds the unit's own cell, so equal contents are of one unit.
        seen[content] += 1
        message = _DRAW + b"\0" + content + seen[content].to_bytes(8, "big")
        tag = hmac.new(key, message, hashlib.sha256).digest()
        by_unit.setdefault(str(cells[place]), []).append((tag, place))
    taken = [place for tags in by_unit.values() for _, place in sorted(tags)[:max_rows]]
    return np.array(sorted(taken), dtype=np.int64)


def encode_units(
    rows: Rows, campaign: Campaign, tokenizer: Tokenizer, *, key: bytes
) -> EncodedRows:
    """Encode the rows of a site that take part in a campaign, bounded per unit.

    Only rows that can be encoded at all are drawn from, so that a broken row does not take the
    place of a good one; whether it can is decided by that row alone.

    Args:
        rows: Rows that passed the gate.
        campaign: States task and unit.
        tokenizer: Of the base model.
        key: The site's secret.

    Raises:
        CampaignError: A column of task or unit is not there.
        ModelMismatch: The tokenizer has no end token, which a causal LM needs.
    """
    record = campaign.privacy.record
    if record is None or record.unit == ROW:
        return encode_rows(rows, campaign.task, tokenizer)
    usable = take_rows(rows, np.flatnonzero(usable_rows(rows, campaign.task)))
    taken = bounded_rows(usable, unit=record.unit, max_rows=record.max_rows_per_unit, key=key)
    chosen = take_rows(usable, taken)
    return encode_rows(chosen, campaign.task, tokenizer, units=unit_numbers(chosen, record.unit))


def require_units(rows: EncodedRows, campaign: Campaign) -> EncodedRows:
    """Return rows that carry what a campaign protects; without units each row would be one.

    Raises:
        ValueError: The campaign protects a column's units, and the rows name none.
    """
    if unit_of(campaign) != ROW and rows.units is None:
        raise ValueError(
            f"the campaign protects {unit_of(campaign)!r} and the rows name no units; encode them "
            "with encode_units"
        )
    return rows


def _require_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of units has {len(key)} bytes, expected {KEY_BYTES}")
