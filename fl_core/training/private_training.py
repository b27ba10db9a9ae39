"""The private gradient of one step: clip every unit, add up, add noise, divide by a public number.

What may touch a unit's gradient is that unit, public data and what was already charged. A gradient
that is not finite counts as zero, chosen by selection: 0 x NaN is NaN, and ``min(1, C / norm)`` of
an infinite norm would turn the whole sum into NaN, by which a crafted adapter could read whether
one text is there (SOUNDNESS, rule 2). For the same reason nothing that a unit makes fail is raised:
its micro-batch is computed again unit by unit and the unit counts as zero, and a step that cannot
be computed at all still sends its noise with a zero sum (rule 18). Error texts can hold row data,
so only the class of an error is ever logged, and at DEBUG.

Source: Abadi et al. 2016, Algorithm 1, with Poisson batches and a fixed public divisor.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl_core.adapters.pair import HEAD
from fl_core.campaign.guarantees import GroupBounds
from fl_core.errors import TrainingError
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import MicroBatch, alone
from fl_core.training.capture import Capture
from fl_core.training.trainee import Trainee

_LOG = logging.getLogger(__name__)
# Rounding of a unit's scaled gradient to float32 must not lift its norm above the bound.
_MARGIN = 1e-6
_TINY = torch.finfo(torch.float64).tiny

Gradients = dict[str, Tensor]
Bounds = float | GroupBounds


@dataclass(frozen=True, slots=True)
class Clipping:
    """How the units of one micro-batch enter the sum.

    Attributes:
        factors: By tensor name, ``(n_units,)`` float32: what a unit's gradient is scaled by.
        counts: ``(n_units,)`` bool; False drops the unit: no unit, or a gradient not finite.
        is_whole: ``(n_units,)`` bool; the unit counts, and nothing of its gradient is cut.
    """

    factors: Mapping[str, Tensor]
    counts: Tensor
    is_whole: Tensor


@dataclass(slots=True)
class ClippedSum:
    """The sum of one step before noise; it never leaves as it is.

    Attributes:
        gradients: Sum of the clipped gradients of all units, float64 by name, sorted.
        n_units: Units that were drawn.
        n_whole: Units of which nothing was cut.
    """

    gradients: Gradients
    n_units: int = 0
    n_whole: int = 0

    @property
    def bit_sum(self) -> float:
        """Sum over the drawn units of ``b - 1/2``, where b says that nothing was cut."""
        return self.n_whole - self.n_units / 2

    def add(self, part: "ClippedSum") -> None:
        """Add the sum of other units."""
        for name, value in part.gradients.items():
            self.gradients[name] += value
        self.n_units += part.n_units
        self.n_whole += part.n_whole


def unit_gradients(trainee: Trainee, micro: MicroBatch, capture: Capture) -> Gradients:
    """Return the gradient of the mean loss of every unit's own rows, ``(n_units, *shape)`` by name.

    A trained tensor that no row reaches is left out; its gradient is zero.

    Raises:
        TrainingError: A trained tensor also got a gradient past the capture.
    """
    capture.take()
    for parameter in trainee.parameters.values():
        parameter.grad = None
    for inputs, weights in micro.passes():
        losses = trainee.losses(trainee.module, inputs)
        losses.backward(weights.to(losses.dtype))
    for name, parameter in trainee.parameters.items():
        if parameter.grad is not None:
            raise TrainingError(
                f"trained tensor {name!r} is also used outside its linear module, so its gradient "
                "per unit is not covered; freeze it"
            )
    return capture.take()


def clip_units(gradients: Mapping[str, Tensor], is_unit: Tensor, bounds: Bounds) -> Clipping:
    """Say how much of every unit's gradient stays: norms in float64, factors never rounded up.

    Args:
        gradients: ``(n_units, *shape)`` by name.
        is_unit: ``(n_units,)`` bool, False for places without a unit.
        bounds: L2 bound C over all tensors together, or one over the LoRA pairs and one over the
            head; a unit is scaled by min(1, C / norm) in each group.
    """
    squares: dict[bool, Tensor] = {}
    for name in sorted(gradients):
        flat = gradients[name].flatten(1)
        # In float64 a finite float32 gradient has a finite norm, so the norm decides finiteness.
        square = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
        group = _is_head(name, bounds)
        squares[group] = squares[group] + square if group in squares else square
    norms = {group: square.sqrt() for group, square in squares.items()}
    counts, is_whole = is_unit, is_unit
    for norm in norms.values():
        counts = counts & torch.isfinite(norm)
    factors = {}
    for group, norm in norms.items():
        raw = (1 - _MARGIN) * _bound(bounds, is_head=group) / norm.clamp(min=_TINY)
        is_whole = is_whole & (raw >= 1)
        factors[group] = torch.where(counts, _rounded_down(raw.clamp(max=1.0)), 0.0)
    return Clipping(
        factors={name: factors[_is_head(name, bounds)] for name in gradients},
        counts=counts,
        is_whole=is_whole & counts,
    )


def _is_head(name: str, bounds: Bounds) -> bool:
    return isinstance(bounds, GroupBounds) and name.startswith(HEAD)


def _bound(bounds: Bounds, *, is_head: bool) -> float:
    if isinstance(bounds, GroupBounds):
        return bounds.head if is_head else bounds.adapter
    return bounds


def _rounded_down(factors: Tensor) -> Tensor:
    near = factors.float()
    return torch.where(near.double() > factors, torch.nextafter(near, torch.zeros(())), near)


def summed_units(gradients: Mapping[str, Tensor], clipping: Clipping) -> Gradients:
    """Return the sum over units of their scaled gradients, by name; changes ``gradients``.

    What does not count is overwritten by zeros, since 0 x NaN is NaN. The scaled gradients of
    single units are never laid out: one vector-matrix product takes their sum.
    """
    dropped = (~clipping.counts).nonzero().flatten()
    summed = {}
    for name, gradient in gradients.items():
        if len(dropped):
            gradient.index_fill_(0, dropped, 0.0)
        factors = clipping.factors[name].to(gradient.dtype)
        summed[name] = (factors @ gradient.flatten(1)).view(gradient.shape[1:])
    return summed


def clipped_sum(
    trainee: Trainee,
    batches: Iterable[MicroBatch],
    *,
    bounds: Bounds,
    dummy: Mapping[str, Tensor],
) -> ClippedSum:
    """Return the sum of the clipped gradients of all units of one step.

    Never raises for what a unit does: such a unit, or at worst the whole step, counts as zero.

    Args:
        trainee: The model; its tensors must be covered (``model_checks.require_private``).
        batches: All micro-batches of the step.
        bounds: L2 bounds of one unit.
        dummy: The public row that stands in for others when units are computed one by one.
    """
    total = ClippedSum(zero_gradients(trainee))
    try:
        for micro in batches:
            shape = micro.shape
            with Capture(trainee, n_rows=shape.pass_rows, n_units=shape.n_units) as capture:
                part = _micro_sum(trainee, micro, capture, bounds)
                if part is None:
                    part = _sum_one_by_one(trainee, micro, capture, bounds, dummy)
            total.add(part)
    except Exception as error:  # noqa: BLE001  rule 18: a step that fails sends noise on a zero sum
        _LOG.debug("step counts as zero error=%s", type(error).__name__)
        return ClippedSum(zero_gradients(trainee))
    return total


def noised_gradient(
    total: Mapping[str, Tensor], *, noise_stddev: float, divisor: float, stream: NoiseStream
) -> Gradients:
    """Return ``(sum + noise_stddev * N(0, 1)) / divisor``, float32 by name.

    Args:
        total: Sum of clipped gradients, float64.
        noise_stddev: In units of the sum.
        divisor: The public batch size; never the number of units that were drawn.
        stream: Where the noise comes from, drawn in sorted name order.
    """
    noised = {}
    for name in sorted(total):
        draw = torch.from_numpy(np.asarray(stream.normal(tuple(total[name].shape))))
        noised[name] = ((total[name] + noise_stddev * draw.double()) / divisor).float()
    return noised


def zero_gradients(trainee: Trainee) -> Gradients:
    """Return a zero gradient for every trained tensor, float64 by name, sorted."""
    return {
        name: torch.zeros(parameter.shape, dtype=torch.float64)
        for name, parameter in sorted(trainee.parameters.items())
    }


def _micro_sum(
    trainee: Trainee, micro: MicroBatch, capture: Capture, bounds: Bounds
) -> ClippedSum | None:
    try:
        gradients = unit_gradients(trainee, micro, capture)
        clipping = clip_units(gradients, micro.is_unit, bounds)
        summed = summed_units(gradients, clipping)
    except Exception as error:  # noqa: BLE001  rule 2: what one unit makes fail must not show
        _LOG.debug("micro-batch failed error=%s", type(error).__name__)
        return None
    return ClippedSum(
        summed, n_units=int(micro.is_unit.sum()), n_whole=int(clipping.is_whole.sum())
    )


def _sum_one_by_one(
    trainee: Trainee,
    micro: MicroBatch,
    capture: Capture,
    bounds: Bounds,
    dummy: Mapping[str, Tensor],
) -> ClippedSum:
    total = ClippedSum(zero_gradients(trainee))
    for unit in micro.is_unit.nonzero().flatten().tolist():
        part = _micro_sum(trainee, alone(micro, unit, dummy), capture, bounds)
        # A unit that fails by itself was drawn, and counts as cut.
        total.add(ClippedSum({}, n_units=1) if part is None else part)
    return total
