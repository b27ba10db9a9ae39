"""The private gradient of one step: clip every row, add up, add noise, divide by a public number.

What may touch a row's gradient is that row, public data and what was already charged. A gradient
that is not finite counts as zero, chosen by selection: 0 x NaN is NaN, and ``min(1, C / norm)`` of
an infinite norm would turn the whole sum into NaN, by which a crafted adapter could read whether
one text is there (SOUNDNESS, rule 2). For the same reason nothing that a row makes fail is raised:
its micro-batch is computed again row by row and the row counts as zero, and a step that cannot be
computed at all still sends its noise with a zero sum (rule 18). Error texts can hold row data, so
only the class of an error is ever logged, and at DEBUG.

Source: Abadi et al. 2016, Algorithm 1, with Poisson batches and a fixed public divisor.
"""

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from fl_core.errors import TrainingError
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import MicroBatch, alone
from fl_core.training.capture import Capture
from fl_core.training.trainee import Trainee

_LOG = logging.getLogger(__name__)
_SAME = 1e-4

Gradients = dict[str, Tensor]


def row_gradients(trainee: Trainee, micro: MicroBatch, capture: Capture) -> Gradients:
    """Return the gradient of every row's own loss, ``(micro_batch, *shape)`` float32 by name.

    A trained tensor that no row reaches is left out; its gradient is zero.

    Raises:
        TrainingError: A trained tensor also got a gradient past the capture.
    """
    capture.take()
    for parameter in trainee.parameters.values():
        parameter.grad = None
    trainee.losses(trainee.module, micro.inputs).sum().backward()
    for name, parameter in trainee.parameters.items():
        if parameter.grad is not None:
            raise TrainingError(
                f"trained tensor {name!r} is also used outside its linear module, so its gradient "
                "per row is not covered; freeze it"
            )
    return capture.take()


def clipped_rows(gradients: Mapping[str, Tensor], is_row: Tensor, clip_norm: float) -> Gradients:
    """Clip every row's gradient to ``clip_norm``, over all tensors together, in float64.

    A dummy's gradient, and one that is not finite, becomes zero by selection.

    Args:
        gradients: ``(n_rows, *shape)`` float32 by name.
        is_row: ``(n_rows,)`` bool, False for dummies.
        clip_norm: L2 bound C; each row is scaled by min(1, C / norm).
    """
    squares = torch.zeros(len(is_row), dtype=torch.float64)
    for name in sorted(gradients):
        flat = gradients[name].flatten(1)
        # In float64 a finite float32 gradient has a finite norm, so the norm decides finiteness.
        squares += torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
    norms = squares.sqrt()
    counts = is_row & torch.isfinite(norms)
    factors = (clip_norm / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    clipped = {}
    for name in sorted(gradients):
        shape = (-1, *[1] * (gradients[name].dim() - 1))
        scaled = gradients[name].double() * factors.view(shape)
        clipped[name] = torch.where(counts.view(shape), scaled, 0.0)
    return clipped


def clipped_sum(
    trainee: Trainee,
    batches: Iterable[MicroBatch],
    *,
    clip_norm: float,
    dummy: Mapping[str, Tensor],
) -> Gradients:
    """Return the sum of the clipped gradients of all rows of one step, float64 by name.

    Never raises for what a row does: such a row, or at worst the whole step, counts as zero.

    Args:
        trainee: The model; its tensors must be covered (``require_private``).
        batches: All micro-batches of the step, dummies marked.
        clip_norm: L2 bound of one row.
        dummy: The public row that stands in for others when rows are computed one by one.
    """
    total = zero_gradients(trainee)
    try:
        for micro in batches:
            with Capture(trainee, n_rows=len(micro.is_row)) as capture:
                part = _micro_sum(trainee, micro, capture, clip_norm)
                if part is None:
                    part = _sum_row_by_row(trainee, micro, capture, clip_norm, dummy)
            for name, value in part.items():
                total[name] += value
    except Exception as error:  # noqa: BLE001  rule 18: a step that fails sends noise on a zero sum
        _LOG.debug("step counts as zero error=%s", type(error).__name__)
        return zero_gradients(trainee)
    return total


def noised_gradient(
    total: Mapping[str, Tensor], *, noise: NoisePlan, divisor: float, stream: NoiseStream
) -> Gradients:
    """Return ``(sum + noise_stddev * N(0, 1)) / divisor``, float32 by name.

    Args:
        total: Sum of clipped gradients, float64.
        noise: Stddev in units of the sum.
        divisor: The public batch size; never the number of rows that were drawn.
        stream: Where the noise comes from, drawn in sorted name order.
    """
    noised = {}
    for name in sorted(total):
        draw = torch.from_numpy(np.asarray(stream.normal(tuple(total[name].shape))))
        noised[name] = ((total[name] + noise.noise_stddev * draw.double()) / divisor).float()
    return noised


def require_private(trainee: Trainee, probe: Mapping[str, Tensor]) -> None:
    """Refuse a model whose rows cannot be clipped apart, before any private row is read.

    Args:
        trainee: The model.
        probe: Two public rows, different from each other.

    Raises:
        TrainingError: A trained tensor is not covered, or one row's gradient depends on another
            row (batch statistics, in-batch losses), which no clipping of rows can bound.
    """
    two = {name: column[:2] for name, column in probe.items()}
    twice = {name: column[:1].expand_as(column[:2]) for name, column in probe.items()}
    rows = torch.ones(2, dtype=torch.bool)
    with Capture(trainee, n_rows=2) as capture:
        beside_another = row_gradients(trainee, MicroBatch(two, rows), capture)
        beside_itself = row_gradients(trainee, MicroBatch(twice, rows), capture)
    for name, gradient in beside_another.items():
        first, again = gradient[0], beside_itself[name][0]
        scale = float(first.abs().nan_to_num(0.0, posinf=0.0).max())
        if not torch.allclose(first, again, rtol=_SAME, atol=_SAME * scale, equal_nan=True):
            raise TrainingError(
                f"the gradient of {name!r} for one row depends on the other rows of its batch; "
                "remove batch statistics and losses that compare rows"
            )


def zero_gradients(trainee: Trainee) -> Gradients:
    """Return a zero gradient for every trained tensor, float64 by name, sorted."""
    return {
        name: torch.zeros(parameter.shape, dtype=torch.float64)
        for name, parameter in sorted(trainee.parameters.items())
    }


def _micro_sum(
    trainee: Trainee, micro: MicroBatch, capture: Capture, clip_norm: float
) -> Gradients | None:
    try:
        gradients = row_gradients(trainee, micro, capture)
        clipped = clipped_rows(gradients, micro.is_row, clip_norm)
    except Exception as error:  # noqa: BLE001  rule 2: what one row makes fail must not show
        _LOG.debug("micro-batch failed error=%s", type(error).__name__)
        return None
    return {name: rows.sum(dim=0) for name, rows in clipped.items()}


def _sum_row_by_row(
    trainee: Trainee,
    micro: MicroBatch,
    capture: Capture,
    clip_norm: float,
    dummy: Mapping[str, Tensor],
) -> Gradients:
    total = zero_gradients(trainee)
    for position in micro.is_row.nonzero().flatten().tolist():
        part = _micro_sum(trainee, alone(micro, position, dummy), capture, clip_norm)
        for name, value in (part or {}).items():
            total[name] += value
    return total
