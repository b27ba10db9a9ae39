"""The local steps of one round, on any model.

One loop serves both guarantees. With a NoisePlan it takes Poisson batches of units, clips every
unit and adds the plan's noise to each step's sum before the public divisor; everything after that
is post-processing. Without one the guarantee is switched off: shuffled epochs in batches of the
public batch size (of all rows where there are fewer), the mean over the realised batch, no
clipping, no noise. Nothing here is logged, and under DP no loss is looked at, because an error or
a number would tell of a row.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_core.campaign.specs import TrainingSpec
from fl_core.errors import LossNotFinite, TrainingError
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import (
    Columns,
    micro_batches,
    plain_batches,
    poisson_batch,
    shuffled_batches,
)
from fl_core.training.model_checks import require_groups, require_private
from fl_core.training.moving_clip import StepClip
from fl_core.training.private_training import (
    Gradients,
    clipped_sum,
    noised_gradient,
    zero_gradients,
)
from fl_core.training.read_out import NoiseWatch
from fl_core.training.trainee import Trainee


@dataclass(frozen=True, slots=True)
class StepsTaken:
    """What private steps leave beside the trained tensors.

    Attributes:
        clip_norm: Of the step after the last one; a function of noised outputs.
        watch: What noise did; stays at the site.
    """

    clip_norm: float
    watch: NoiseWatch


def run_steps(  # noqa: PLR0913  campaign numbers beside what the site adds, by name
    trainee: Trainee,
    columns: Columns,
    *,
    training: TrainingSpec,
    divisor: float,
    noise: NoisePlan | None,
    stream: NoiseStream,
    probe: Mapping[str, Tensor],
    clip_norm: float | None = None,
) -> StepsTaken | None:
    """Take all local steps of one round on any model; see ``train_round``.

    Args:
        trainee: The model.
        columns: The site's rows.
        training: Public numbers of the campaign.
        divisor: Public batch size of this site.
        noise: None is no guarantee.
        stream: Noise, Poisson coins and, without noise, the shuffling.
        probe: Two public rows, different from each other.
        clip_norm: Where a moving clip norm starts; None is the plan's own.

    Returns:
        None without noise.
    """
    if noise is None:
        _take(trainee, training, _plain_gradients(trainee, columns, training, divisor, stream))
        return None
    _require_plan(noise, training)
    require_groups(trainee, noise.group_bounds)
    require_private(trainee, probe)
    clip = StepClip(noise, noise.clip_norm if clip_norm is None else clip_norm)
    steps = PrivateSteps(trainee, columns, training.micro_batch, divisor, clip, stream)
    _take(trainee, training, iter(steps))
    return StepsTaken(clip.clip_norm, steps.watch)


class PrivateSteps:
    """Yields the noised gradient of one Poisson batch after another, at the current parameters.

    Args:
        trainee: The model; checked by ``require_private``.
        columns: The site's rows.
        micro_batch: Rows per forward pass.
        divisor: Public batch size of this site.
        clip: Bounds and noise, which move from step to step.
        stream: Noise and Poisson coins.
    """

    def __init__(  # noqa: PLR0913, PLR0917  the parts of one loop, made in one place
        self,
        trainee: Trainee,
        columns: Columns,
        micro_batch: int,
        divisor: float,
        clip: StepClip,
        stream: NoiseStream,
    ) -> None:
        self._trainee, self._columns, self._micro_batch = trainee, columns, micro_batch
        self._divisor, self._clip, self._stream = divisor, clip, stream
        self.watch = NoiseWatch(divisor)

    def __iter__(self) -> Iterator[Gradients]:
        """Yield gradients without end; each is one charged step."""
        while True:
            yield self._step()

    def _step(self) -> Gradients:
        columns, clip, stream = self._columns, self._clip, self._stream
        chosen = poisson_batch(columns.n_units, clip.noise.sampling_rate, stream)
        batches = micro_batches(columns, chosen, self._micro_batch)
        step = clipped_sum(self._trainee, batches, bounds=clip.bounds, dummy=columns.dummy)
        gradient = noised_gradient(
            step.gradients, noise_stddev=clip.noise_stddev, divisor=self._divisor, stream=stream
        )
        clip.move(step, divisor=self._divisor, stream=stream)
        self.watch.add(step, gradient)
        return gradient


def _take(trainee: Trainee, training: TrainingSpec, gradients: Iterator[Gradients]) -> None:
    optimizer = _optimizer(trainee, training)
    for _ in range(training.local_steps):
        gradient = next(gradients)
        for name, parameter in trainee.parameters.items():
            parameter.grad = gradient[name].to(parameter.dtype)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _plain_gradients(
    trainee: Trainee,
    columns: Columns,
    training: TrainingSpec,
    divisor: float,
    stream: NoiseStream,
) -> Iterator[Gradients]:
    if len(columns) == 0:
        raise TrainingError("there are no rows to train on; check the site's data and its gate")
    for chosen in shuffled_batches(len(columns), max(1, round(divisor)), stream):
        batches = plain_batches(columns, chosen, training.micro_batch)
        yield _mean_gradient(trainee, batches, len(chosen))


def _mean_gradient(
    trainee: Trainee, batches: Iterable[Mapping[str, Tensor]], n_rows: int
) -> Gradients:
    for parameter in trainee.parameters.values():
        parameter.grad = None
    loss_sum = 0.0
    for inputs in batches:
        losses = trainee.losses(trainee.module, inputs)
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
