"""Poisson and shuffled batches, cut into micro-batches of one fixed shape.

Under RecordDp every row enters a step's batch by a coin of its own, which is what the accounting
assumes; without a guarantee rows come in shuffled epochs. Either way a batch is cut into
micro-batches that always have ``micro_batch`` rows: the last one is filled with a public dummy row
whose gradient is left out of the sum. So peak memory does not follow the data, and the numerical
kernels, which depend on shapes, treat a row alike whoever sits beside it (SOUNDNESS, rules 1, 11).
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
    """Rows as tensors.

    Attributes:
        tensors: By name, each with the n rows first.
        dummy: One public row, ``(1, ...)`` by the same names; it depends on no row.
    """

    tensors: Mapping[str, Tensor]
    dummy: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tensors.values())))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        inputs: By name, each ``(micro_batch, ...)``.
        is_row: ``(micro_batch,)`` bool; False marks a dummy, which must not count.
    """

    inputs: Mapping[str, Tensor]
    is_row: Tensor


def columns_of(rows: EncodedRows) -> Columns:
    """Return encoded rows as tensors, with a dummy of token 0 that carries no answer."""
    width = rows.input_ids.shape[1]
    label = torch.zeros(1, dtype=torch.int64)
    if rows.labels.ndim > 1:
        label = torch.full((1, width), IGNORED)
    return Columns(
        tensors={
            "input_ids": torch.from_numpy(rows.input_ids),
            "attention_mask": torch.from_numpy(rows.attention_mask),
            "labels": torch.from_numpy(rows.labels),
        },
        dummy={
            "input_ids": torch.zeros((1, width), dtype=torch.int64),
            "attention_mask": torch.ones((1, width), dtype=torch.int64),
            "labels": label,
        },
    )


def poisson_batch(n_rows: int, rate: float, stream: NoiseStream) -> Positions:
    """Return the rows of one step; each is in with probability ``rate``, independently.

    The batch may be empty; its step is taken, noised and charged like any other.
    """
    return np.flatnonzero(stream.coins(n_rows, rate))


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


def micro_batches(
    columns: Columns, chosen: Positions, size: int, *, fill: bool = True
) -> Iterator[MicroBatch]:
    """Cut the chosen rows into micro-batches of ``size``.

    Args:
        columns: All rows.
        chosen: Positions of the batch.
        size: Rows per forward pass.
        fill: Fill the last one up with dummies; False only without a guarantee, where dummies
            would do nothing but enter a module's batch statistics.
    """
    for start in range(0, len(chosen), size):
        rows = torch.from_numpy(np.ascontiguousarray(chosen[start : start + size]))
        n_dummies = size - len(rows) if fill else 0
        inputs = {
            name: torch.cat([column[rows], _repeated(columns.dummy[name], n_dummies)])
            for name, column in columns.tensors.items()
        }
        yield MicroBatch(inputs=inputs, is_row=torch.arange(len(rows) + n_dummies) < len(rows))


def alone(micro: MicroBatch, position: int, dummy: Mapping[str, Tensor]) -> MicroBatch:
    """Return a micro-batch in which all rows but one are replaced by the dummy."""
    is_row = torch.zeros_like(micro.is_row)
    is_row[position] = micro.is_row[position]
    inputs = {}
    for name, column in micro.inputs.items():
        inputs[name] = _repeated(dummy[name], len(column)).clone()
        inputs[name][position] = column[position]
    return MicroBatch(inputs=inputs, is_row=is_row)


def _repeated(row: Tensor, times: int) -> Tensor:
    return row.expand(times, *row.shape[1:])
