"""Poisson and shuffled batches, cut into micro-batches of one fixed shape.

Under RecordDp every unit enters a step's batch by a coin of its own, with all its rows, which is
what the accounting assumes; without a guarantee rows come in shuffled epochs. A private batch is
cut into micro-batches of one public shape: so many units, each with the same number of places for
its rows. Empty places hold a public dummy row that counts as nothing. So peak memory does not
follow the data, and the numerical kernels, which depend on shapes, treat a row alike whoever sits
beside it (SOUNDNESS, rules 1, 3, 11).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_core.data.prompts import IGNORED, EncodedRows
from fl_core.privacy.randomness import NoiseStream

Positions = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows as tensors, the rows of one unit side by side.

    Attributes:
        tensors: By name, each with the n rows first.
        dummy: One public row, ``(1, ...)`` by the same names; it depends on no row.
        starts: ``(n_units + 1,)``; the rows of unit u are ``starts[u]`` to ``starts[u + 1]``.
        rows_per_unit: Public limit R of the rows of one unit.
    """

    tensors: Mapping[str, Tensor]
    dummy: Mapping[str, Tensor]
    starts: Positions
    rows_per_unit: int = 1

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tensors.values())))

    @property
    def n_units(self) -> int:
        """Number of units, which is what coins are thrown for."""
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """The public shape of a private micro-batch.

    Attributes:
        n_units: Units of one micro-batch.
        rows_per_unit: Places for rows of each unit, filled up with dummies.
        n_passes: Forward passes that these rows are split into; above 1 only for a single unit.
    """

    n_units: int
    rows_per_unit: int
    n_passes: int

    @property
    def pass_rows(self) -> int:
        """Rows of one forward pass."""
        return self.n_units * self.rows_per_unit // self.n_passes


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Units whose gradients are computed together.

    Attributes:
        inputs: By name, each ``(n_units * rows_per_unit, ...)``, a unit's rows side by side.
        weights: ``(n_units * rows_per_unit,)`` float32: 1 / (rows of its unit), 0 for a dummy, so
            that a unit's loss is the mean over its own rows.
        is_unit: ``(n_units,)`` bool; False marks a place without a unit, which must not count.
        shape: How the rows are laid out.
    """

    inputs: Mapping[str, Tensor]
    weights: Tensor
    is_unit: Tensor
    shape: Shape

    def passes(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield inputs and weights of every forward pass, all of one shape."""
        rows = self.shape.pass_rows
        for start in range(0, len(self.weights), rows):
            part = slice(start, start + rows)
            yield {name: column[part] for name, column in self.inputs.items()}, self.weights[part]


def micro_shape(*, micro_batch: int, rows_per_unit: int) -> Shape:
    """Return the shape of micro-batches of about ``micro_batch`` rows.

    ``ceil(micro_batch / R)`` units of R rows, or, where a unit has more rows than fit, one unit in
    ``ceil(R / micro_batch)`` passes. All of it follows from public numbers.
    """
    if rows_per_unit <= micro_batch:
        return Shape(
            n_units=-(-micro_batch // rows_per_unit), rows_per_unit=rows_per_unit, n_passes=1
        )
    n_passes = -(-rows_per_unit // micro_batch)
    return Shape(n_units=1, rows_per_unit=n_passes * micro_batch, n_passes=n_passes)


def columns_of(rows: EncodedRows, *, max_rows_per_unit: int = 1) -> Columns:
    """Return encoded rows as tensors, with a dummy of token 0 that carries no answer.

    Args:
        rows: Where they name no units, every row is one.
        max_rows_per_unit: Public limit R; the first R rows of a unit are kept, which looks at that
            unit alone.
    """
    order, starts = _by_unit(rows, max_rows_per_unit)
    width = rows.input_ids.shape[1]
    label = torch.zeros(1, dtype=torch.int64)
    if rows.labels.ndim > 1:
        label = torch.full((1, width), IGNORED)
    named = {
        "input_ids": rows.input_ids,
        "attention_mask": rows.attention_mask,
        "labels": rows.labels,
    }
    return Columns(
        tensors={
            name: torch.from_numpy(column if order is None else column[order])
            for name, column in named.items()
        },
        dummy={
            "input_ids": torch.zeros((1, width), dtype=torch.int64),
            "attention_mask": torch.ones((1, width), dtype=torch.int64),
            "labels": label,
        },
        starts=starts,
        rows_per_unit=max_rows_per_unit,
    )


def _by_unit(rows: EncodedRows, limit: int) -> tuple[Positions | None, Positions]:
    """Return the order that puts units side by side, or None if they are, and where each begins."""
    if rows.units is None:
        return None, np.arange(len(rows) + 1, dtype=np.intp)
    order = np.argsort(rows.units, kind="stable")
    _, begins, counts = np.unique(rows.units[order], return_index=True, return_counts=True)
    # The place of every row inside its unit.
    places = np.arange(len(order)) - np.repeat(begins, counts)
    kept = np.minimum(counts, limit)
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.intp)
    return order[places < limit], starts


def poisson_batch(n_units: int, rate: float, stream: NoiseStream) -> Positions:
    """Return the units of one step; each is in with probability ``rate``, independently.

    The batch may be empty; its step is taken, noised and charged like any other.
    """
    return np.flatnonzero(stream.coins(n_units, rate))


def shuffled_batches(n_rows: int, size: int, stream: NoiseStream) -> Iterator[Positions]:
    """Yield batches of ``min(size, n_rows)`` rows without end, from one shuffled epoch to the next.

    An epoch's remainder opens the next epoch, so every batch has the same size.
    """
    size = min(size, n_rows)
    waiting = np.empty(0, dtype=np.intp)
    while True:
        while len(waiting) < size:
            order = np.argsort(stream.normal((n_rows,)), kind="stable")
            waiting = np.concatenate([waiting, order])
        yield waiting[:size]
        waiting = waiting[size:]


def plain_batches(columns: Columns, chosen: Positions, size: int) -> Iterator[dict[str, Tensor]]:
    """Cut the chosen *rows* into batches of ``size`` without dummies; only without a guarantee."""
    for start in range(0, len(chosen), size):
        rows = torch.from_numpy(np.ascontiguousarray(chosen[start : start + size]))
        yield {name: column[rows] for name, column in columns.tensors.items()}


def micro_batches(columns: Columns, chosen: Positions, size: int) -> Iterator[MicroBatch]:
    """Cut the chosen *units* into micro-batches of about ``size`` rows, filled up with dummies.

    Args:
        columns: All rows.
        chosen: Numbers of the units of a step.
        size: Rows per forward pass; the shape that follows is ``micro_shape``.
    """
    shape = micro_shape(micro_batch=size, rows_per_unit=columns.rows_per_unit)
    for start in range(0, len(chosen), shape.n_units):
        yield _micro_batch(columns, chosen[start : start + shape.n_units], shape)


def _micro_batch(columns: Columns, units: Positions, shape: Shape) -> MicroBatch:
    counts = columns.starts[units + 1] - columns.starts[units]
    places = np.arange(shape.rows_per_unit)
    is_row = np.zeros((shape.n_units, shape.rows_per_unit), dtype=np.bool_)
    is_row[: len(units)] = places < counts[:, None]
    rows = torch.from_numpy((columns.starts[units][:, None] + places)[is_row[: len(units)]])
    weights = np.zeros(is_row.shape, dtype=np.float32)
    weights[: len(units)] = is_row[: len(units)] / counts[:, None]
    filled = torch.from_numpy(is_row.ravel())
    inputs = {}
    for name, column in columns.tensors.items():
        inputs[name] = _repeated(columns.dummy[name], len(filled)).clone()
        inputs[name][filled] = column[rows]
    return MicroBatch(
        inputs=inputs,
        weights=torch.from_numpy(weights.ravel()),
        is_unit=torch.arange(shape.n_units) < len(units),
        shape=shape,
    )


def alone(micro: MicroBatch, unit: int, dummy: Mapping[str, Tensor]) -> MicroBatch:
    """Return a micro-batch in which all units but one are replaced by the dummy."""
    stays = torch.zeros_like(micro.is_unit)
    stays[unit] = micro.is_unit[unit]
    rows = stays.repeat_interleave(micro.shape.rows_per_unit)
    inputs = {}
    for name, column in micro.inputs.items():
        inputs[name] = _repeated(dummy[name], len(column)).clone()
        inputs[name][rows] = column[rows]
    return MicroBatch(
        inputs=inputs,
        weights=torch.where(rows, micro.weights, 0.0),
        is_unit=stays,
        shape=micro.shape,
    )


def _repeated(row: Tensor, times: int) -> Tensor:
    return row.expand(times, *row.shape[1:])
