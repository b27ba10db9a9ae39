"""Per-unit clipping taken apart: the definition, one row at a time, and what the product adds."""

import math

import numpy as np
import torch
from torch import Tensor

from fl_core.data.prompts import EncodedRows
from fl_core.models.losses import row_losses
from fl_core.models.peft_state import AdaptedModel
from fl_core.training.batches import MicroBatch, columns_of
from fl_core.training.capture import Capture
from fl_core.training.private_training import clip_units, summed_units, unit_gradients
from fl_core.training.trainee import trainee_of
from tests.tiny_models import take

Total = dict[str, Tensor]


def one_by_one(model: AdaptedModel, rows: EncodedRows, bound: float) -> tuple[Total, list[float]]:
    """Return the sum of the clipped gradients of all rows, float64, and their norms before."""
    return unit_by_unit(model, rows, np.arange(len(rows)), bound=bound)


def unit_by_unit(
    model: AdaptedModel, rows: EncodedRows, units, *, bound: float, limit: int | None = None
) -> tuple[Total, list[float]]:
    """Return the sum over units of the clipped mean of their own rows' gradients, and the norms.

    Args:
        model: Gradients are those of its trainable parameters.
        rows: All rows.
        units: Unit of each row.
        bound: L2 bound over all tensors together.
        limit: Only a unit's first rows count.
    """
    parameters = model.trainable_parameters()
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    norms = []
    for unit in np.unique(units):
        own = np.flatnonzero(np.asarray(units) == unit)[:limit]
        mean = {name: torch.zeros_like(tensor) for name, tensor in total.items()}
        for position in own:
            for name, gradient in row_gradient(model, rows, position).items():
                mean[name] += gradient / len(own)
        norms.append(norm_of(mean))
        for name, gradient in mean.items():
            total[name] += gradient * (min(1.0, bound / norms[-1]) if norms[-1] > 0 else 1.0)
    return total, norms


def row_gradient(model: AdaptedModel, rows: EncodedRows, position: int) -> Total:
    """Return the gradient of one row's loss, float64, from a batch of that row alone."""
    row = columns_of(take(rows, slice(position, position + 1))).tensors
    loss = row_losses(model(row["input_ids"], row["attention_mask"]), row["labels"]).sum()
    parameters = model.trainable_parameters()
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return {name: g.double() for name, g in zip(parameters, gradients, strict=True)}


def norm_of(tensors: Total) -> float:
    """Return the L2 norm of all tensors together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def largest_error(found: Total, expected: Total) -> float:
    """Return the L2 distance of two sums of gradients, as a share of the expected one's norm."""
    assert found.keys() == expected.keys()
    distance = norm_of({n: found[n].double() - expected[n].double() for n in expected})
    return distance / norm_of(expected)


def shares_of(model: AdaptedModel, micro: MicroBatch, *, bounds: float) -> Total:
    """Return what each unit adds to the product's own sum, ``(n_units, *shape)`` by name."""
    trainee = trainee_of(model)
    with Capture(trainee, n_rows=micro.shape.pass_rows, n_units=micro.shape.n_units) as capture:
        gradients = unit_gradients(trainee, micro, capture)
    clipping = clip_units(gradients, micro.is_unit, bounds)
    summed_units(gradients, clipping)
    return {
        name: clipping.factors[name].view(-1, *[1] * (gradient.dim() - 1)) * gradient
        for name, gradient in gradients.items()
    }
