"""The local steps of one round, on any model.

One loop serves both guarantees. With a NoisePlan it takes Poisson batches, clips every row and
adds the plan's noise to each step's sum before the public divisor; everything after that is
post-processing. Without one the guarantee is switched off: shuffled epochs in batches of the
public batch size (of all rows where there are fewer), the mean over the realised batch, no
clipping, no noise. Nothing here is logged, and under DP no loss is looked at, because an error or
a number would tell of a row.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fl_core.campaign.specs import TrainingSpec
from fl_core.errors import LossNotFinite, TrainingError
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import (
    Columns,
    MicroBatch,
    micro_batches,
    poisson_batch,
    shuffled_batches,
)
from fl_core.training.private_training import (
    Gradients,
    clipped_sum,
    noised_gradient,
    require_private,
    zero_gradients,
)
from fl_core.training.trainee import Trainee


def run_steps(  # noqa: PLR0913  campaign numbers beside what the site adds, by name
    trainee: Trainee,
    columns: Columns,
    *,
    training: TrainingSpec,
    divisor: float,
    noise: NoisePlan | None,
    stream: NoiseStream,
    probe: Mapping[str, Tensor],
) -> None:
    """Take all local steps of one round on any model; see ``train_locally``."""
    optimizer = _optimizer(trainee, training)
    if noise is not None:
        _require_plan(noise, training)
        require_private(trainee, probe)
    elif len(columns) == 0:
        raise TrainingError("there are no rows to train on; check the site's data and its gate")
    shuffled = shuffled_batches(len(columns), max(1, round(divisor)), stream)
    for _ in range(training.local_steps):
        if noise is None:
            chosen = next(shuffled)
            batches = micro_batches(columns, chosen, training.micro_batch, fill=False)
            gradient = _mean_gradient(trainee, batches, len(chosen))
        else:
            chosen = poisson_batch(len(columns), noise.sampling_rate, stream)
            batches = micro_batches(columns, chosen, training.micro_batch)
            total = clipped_sum(trainee, batches, clip_norm=noise.clip_norm, dummy=columns.dummy)
            gradient = noised_gradient(total, noise=noise, divisor=divisor, stream=stream)
        for name, parameter in trainee.parameters.items():
            parameter.grad = gradient[name].to(parameter.dtype)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _mean_gradient(trainee: Trainee, batches: Iterable[MicroBatch], n_rows: int) -> Gradients:
    for parameter in trainee.parameters.values():
        parameter.grad = None
    loss_sum = 0.0
    for micro in batches:
        losses = trainee.losses(trainee.module, micro.inputs)
        losses.sum().backward()
        loss_sum += float(losses.detach().sum())
    if not math.isfinite(loss_sum):
        raise LossNotFinite(
            f"the training loss is {loss_sum}; lower training.learning_rate, or start from an "
            "earlier adapter"
        )
    total = zero_gradients(trainee)
    for name, parameter in trainee.parameters.items():
        if parameter.grad is not None:
            total[name] += parameter.grad / n_rows
    return total


def _optimizer(trainee: Trainee, training: TrainingSpec) -> torch.optim.Optimizer:
    # Sorted, so that every machine updates in one order.
    parameters = [trainee.parameters[name] for name in sorted(trainee.parameters)]
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.SGD(parameters, lr=training.learning_rate)


def _require_plan(noise: NoisePlan, training: TrainingSpec) -> None:
    if noise.stage != "gradient" or noise.steps != training.local_steps:
        raise TrainingError(
            f"the noise plan is for {noise.steps} steps of stage {noise.stage!r}, training takes "
            f"{training.local_steps} steps with noise on gradients; build it from the campaign"
        )
