"""Watch the product's private training from inside, without changing a line of it.

An audit must look at the code that sites run, not at a copy. So everything is seen through what the
training loop touches anyway: a column of numbers tells which units entered a forward pass, and a
hook of torch's optimizers tells which gradient a step came out with. For a tester on public rows:
whoever sees this sees who was in a batch, which no adversary of the claim does.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fl_core.adapters.pair import HEAD
from fl_core.campaign.specs import TrainingSpec
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import Columns
from fl_core.training.steps import run_steps
from fl_core.training.trainee import Trainee

UNIT = "watched_unit"
_DUMMY = -1

Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: public numbers of a campaign.

    Attributes:
        training: Steps, learning rate, optimizer, micro-batch.
        divisor: Public batch size.
        noise: Clip norm, noise and sampling rate of every step.
        probe: Two public rows, as ``run_steps`` takes them.
        clip_norm: Where a moving clip norm starts; None is the plan's own.
    """

    training: TrainingSpec
    divisor: float
    noise: NoisePlan
    probe: Mapping[str, Tensor]
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of training did.

    Attributes:
        units: Numbers of the units whose rows entered a forward pass, ascending, each once.
        released: Noised sum by name, float64: the gradient that the optimizer got, times the
            public divisor.
    """

    units: tuple[int, ...]
    released: Gradients


def watch(
    trainee: Trainee,
    columns: Columns,
    recipe: Recipe,
    *,
    stream: NoiseStream,
    on_step: Callable[[Step], None],
) -> float:
    """Run the product's local steps and report each before it moves a parameter.

    Args:
        trainee: The model; it is trained in place.
        columns: Public rows; the order of their units gives the numbers in ``Step.units``.
        recipe: How to train.
        stream: Noise and coins, as a site would draw them.
        on_step: Called with every step, at the parameters that its gradient was taken at.

    Returns:
        The clip norm of the step after the last one.

    Raises:
        TrainingError: As ``run_steps``.
    """
    seen: set[int] = set()
    names = {id(parameter): name for name, parameter in trainee.parameters.items()}

    def losses(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        if UNIT in batch:
            seen.update(batch[UNIT].tolist())
        return trainee.losses(module, {n: c for n, c in batch.items() if n != UNIT})

    def before_step(optimizer: torch.optim.Optimizer) -> None:
        units = tuple(sorted(seen - {_DUMMY}))
        seen.clear()
        on_step(Step(units=units, released=_released(optimizer, names, recipe.divisor)))

    with _optimizer_steps(before_step):
        taken = run_steps(
            replace(trainee, losses=losses),
            _numbered(columns),
            training=recipe.training,
            divisor=recipe.divisor,
            noise=recipe.noise,
            stream=stream,
            probe=recipe.probe,
            clip_norm=recipe.clip_norm,
        )
    return recipe.noise.clip_norm if taken is None else taken.clip_norm


def clipped_alone(
    trainee: Trainee, columns: Columns, number: int, *, noise: NoisePlan
) -> Gradients:
    """Return one unit's clipped gradient from the definition, float64 by name.

    One backward pass of plain autograd on a batch of that unit's rows alone, for the mean of their
    losses, clipped to the plan's bound over all tensors together, or to one bound for the head and
    one for the rest. A gradient that is not finite counts as zero (SOUNDNESS, rule 2).

    Source: Abadi et al. 2016, Algorithm 1.
    """
    rows = slice(int(columns.starts[number]), int(columns.starts[number + 1]))
    batch = {name: column[rows] for name, column in columns.tensors.items()}
    names = sorted(trainee.parameters)
    loss = trainee.losses(trainee.module, batch).mean()
    found = torch.autograd.grad(loss, [trainee.parameters[n] for n in names], allow_unused=True)
    gradients = {
        name: torch.zeros(trainee.parameters[name].shape, dtype=torch.float64)
        if gradient is None
        else gradient.double()
        for name, gradient in zip(names, found, strict=True)
    }
    clipped: Gradients = {}
    for bound, group in bounds_of(names, noise):
        norm = norm_of({name: gradients[name] for name in group})
        if not math.isfinite(norm):
            return {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        factor = min(1.0, bound / norm) if norm > 0 else 1.0
        clipped |= {name: gradients[name] * factor for name in group}
    return clipped


def bounds_of(names: list[str], noise: NoisePlan) -> list[tuple[float, list[str]]]:
    """Return every L2 bound of a plan with the tensors that it holds for together."""
    if noise.group_bounds is None:
        return [(noise.clip_norm, names)]
    head = [name for name in names if name.startswith(HEAD)]
    pairs = [name for name in names if not name.startswith(HEAD)]
    return [(noise.group_bounds.head, head), (noise.group_bounds.adapter, pairs)]


def norm_of(gradients: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors together."""
    squares = sum(float(tensor.double().square().sum()) for tensor in gradients.values())
    return float(squares**0.5)


def _numbered(columns: Columns) -> Columns:
    counts = torch.from_numpy(np.diff(columns.starts))
    numbers = torch.repeat_interleave(torch.arange(columns.n_units), counts)
    return replace(
        columns,
        tensors={**columns.tensors, UNIT: numbers},
        dummy={**columns.dummy, UNIT: torch.full((1,), _DUMMY)},
    )


def chosen_units(columns: Columns, numbers: Sequence[int]) -> Columns:
    """Return the columns with some units only, in that order, numbered from 0."""
    starts = columns.starts
    spans = [np.arange(starts[n], starts[n + 1]) for n in numbers]
    positions = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.intp), *spans]))
    return replace(
        columns,
        tensors={name: column[positions] for name, column in columns.tensors.items()},
        starts=np.cumsum([0, *(len(span) for span in spans)], dtype=np.intp),
    )


def _released(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], divisor: float
) -> Gradients:
    return {
        names[id(parameter)]: parameter.grad.detach().double() * divisor
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names and parameter.grad is not None
    }


@contextmanager
def _optimizer_steps(before: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    def hook(optimizer: torch.optim.Optimizer, _args: Any, _options: Any) -> None:
        before(optimizer)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
