"""White-box checks of private training: does the code do what its accounting says.

An attack on the outputs proves little (a perfect one shows an epsilon of 1.4 where 4 is true), but
whoever holds the code can measure what the proof rests on: the scale of the noise to a fraction of
a percent, the bound of every row's contribution, the coins of every batch. These checks run the
product's own training on public rows, through ``watching``, and compare it with the definition.
They start from a random state, because at the usual start most gradients are zero and a bound that
does not hold would not show.

Each check that rests on chance raises a false alarm with probability 1e-6 or less.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from fl_core.privacy.audit_documents import WhiteBoxCheck
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import Columns
from fl_core.training.trainee import Trainee
from fl_core.training.watching import (
    Gradients,
    Recipe,
    Step,
    bounds_of,
    chosen_units,
    clipped_alone,
    norm_of,
    watch,
)
from fl_core.training.white_box_statistics import (
    coin_checks,
    fresh_coins_check,
    fresh_noise_check,
    noise_checks,
    noise_steps,
    steps_needed,
)
from fl_core.updates.records import EventRecord, GaussianEvent, SelfComposedEvent

Streams = Callable[[], NoiseStream]

_BOUND_SLACK = 1e-5
_SAME_SUM = 5e-5
_SAMPLE = 6
_SHORT = 8
_SPREAD = 0.05
# Noise of a billionth of the clip norm: the sum that comes out is the clipped sum.
_NO_NOISE = 1e-9
_STILL = 1e-6


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked.

    Attributes:
        trainee: The model; it is left as it was.
        columns: Public rows.
        recipe: The campaign's numbers.
    """

    trainee: Trainee
    columns: Columns
    recipe: Recipe


def white_box_checks(subject: Subject, *, streams: Streams) -> tuple[WhiteBoxCheck, ...]:
    """Run every check on the product's training.

    Args:
        subject: Model, public rows and numbers.
        streams: Returns a new stream of noise and coins, as a site makes one per training.

    Raises:
        TrainingError: The model cannot be trained privately at all.
    """
    with _random_state(subject.trainee, streams()):
        clipping = _clipping_checks(subject, streams)
        before = _fingerprints(subject.trainee)
        first, second = _observe(subject, streams), _observe(subject, streams)
        moved = sorted(
            name for name, mark in _fingerprints(subject.trainee).items() if before[name] != mark
        )
    steps = (*first, *second)
    residuals = [step.residual for step in steps if step.residual is not None]
    noise, n_units = subject.recipe.noise, _observed_units(subject)
    batches = [[step.units for step in run] for run in (first, second)]
    return (
        *clipping,
        *noise_checks(residuals, noise.noise_stddev),
        fresh_noise_check(residuals),
        fresh_coins_check(batches[0], batches[1], units=n_units, rate=noise.sampling_rate),
        *coin_checks([*batches[0], *batches[1]], units=n_units, rate=noise.sampling_rate),
        _still_check(moved),
    )


@dataclass(frozen=True, slots=True)
class Observed:
    """One step: who was in, and released minus clipped sum, one vector per tensor.

    The sum takes a backward pass per unit, so it is None where enough steps have shown the noise.
    """

    units: tuple[int, ...]
    residual: Gradients | None


def _observe(subject: Subject, streams: Streams) -> list[Observed]:
    """Return half of the steps that the checks need, from one training.

    A clip norm that moves is known at the first step only, so it gets trainings of one step.
    """
    noise = subject.recipe.noise
    dimension = sum(p.numel() for p in subject.trainee.parameters.values())
    n_steps = steps_needed(dimension) // 2
    length = n_steps if noise.adaptive_clip is None else 1
    columns = _shortened(_first_units(subject.columns, _observed_units(subject)))
    plan, n_compared = _replanned(noise, steps=length), noise_steps(dimension) // 2
    found: list[Observed] = []

    def keep(step: Step) -> None:
        residual = None
        if len(found) < n_compared:
            total = _sum_by_definition(subject.trainee, columns, step.units, plan)
            residual = {n: (step.released[n] - total[n]).flatten().float() for n in sorted(total)}
        found.append(Observed(units=step.units, residual=residual))

    recipe = _still(subject.recipe, plan)
    for _ in range(n_steps // length):
        with _kept(subject.trainee):
            watch(subject.trainee, columns, recipe, stream=streams(), on_step=keep)
    return found


def _clipping_checks(subject: Subject, streams: Streams) -> tuple[WhiteBoxCheck, ...]:
    trainee, columns = subject.trainee, _first_units(subject.columns, _SAMPLE)
    numbers = range(columns.n_units)
    plan = _binding(subject, columns)
    names = sorted(trainee.parameters)

    def summed(chosen: Sequence[int]) -> Gradients:
        some = chosen_units(columns, chosen)
        return _clipped_sum(replace(subject, columns=some), plan, streams())

    everyone = summed(numbers)
    worst = max(
        norm_of({name: alone[name] for name in group}) / bound
        for alone in (summed([number]) for number in numbers)
        for bound, group in bounds_of(names, plan)
        if group
    )
    gone = max(
        norm_of(_difference(everyone, summed([n for n in numbers if n != number])))
        for number in numbers
    )
    expected = _sum_by_definition(trainee, columns, numbers, plan)
    error = norm_of(_difference(everyone, expected)) / max(norm_of(expected), plan.clip_norm)
    return (
        WhiteBoxCheck(
            check="one_unit_is_bounded",
            measured=f"largest contribution is {worst:.6f} of its bound",
            expected=f"at most {1 + _BOUND_SLACK:.5f}",
            passed=worst <= 1 + _BOUND_SLACK,
        ),
        WhiteBoxCheck(
            check="one_unit_less",
            measured=f"sum moves by up to {gone / plan.assumed_sensitivity:.6f} of the sensitivity",
            expected=f"at most {1 + _BOUND_SLACK:.5f}",
            passed=gone <= plan.assumed_sensitivity * (1 + _BOUND_SLACK),
        ),
        WhiteBoxCheck(
            check="sum_equals_the_loop",
            measured=f"relative error {error:.1e}",
            expected=f"at most {_SAME_SUM:.0e}",
            passed=error <= _SAME_SUM,
        ),
    )


def _still_check(moved: Sequence[str]) -> WhiteBoxCheck:
    shown = ", ".join(moved[:2])
    return WhiteBoxCheck(
        check="nothing_else_moves",
        measured=f"{len(moved)} other tensors changed{': ' + shown[:200] if moved else ''}",
        expected="0: only noised steps change a tensor",
        passed=not moved,
    )


def _clipped_sum(subject: Subject, plan: NoisePlan, stream: NoiseStream) -> Gradients:
    """Return the product's sum over all units, without noise worth naming."""
    sums: list[Gradients] = []
    with _kept(subject.trainee):
        watch(
            subject.trainee,
            subject.columns,
            _still(subject.recipe, plan),
            stream=stream,
            on_step=lambda step: sums.append(step.released),
        )
    return sums[0]


def _sum_by_definition(
    trainee: Trainee, columns: Columns, units: Sequence[int], plan: NoisePlan
) -> Gradients:
    total = {
        name: torch.zeros(parameter.shape, dtype=torch.float64)
        for name, parameter in sorted(trainee.parameters.items())
    }
    for number in units:
        for name, gradient in clipped_alone(trainee, columns, number, noise=plan).items():
            total[name] += gradient
    return total


def _binding(subject: Subject, columns: Columns) -> NoisePlan:
    """Return a plan without noise whose bounds cut every unit, so that clipping shows."""
    trainee, noise = subject.trainee, subject.recipe.noise
    names = sorted(trainee.parameters)
    # Bounds beyond any gradient: what comes back is the gradient itself.
    unclipped = _without_noise(noise, factor=1e30)
    share = 1.0
    for number in range(columns.n_units):
        gradients = clipped_alone(trainee, columns, number, noise=unclipped)
        for bound, group in bounds_of(names, noise):
            norm = norm_of({name: gradients[name] for name in group})
            share = min(share, 0.5 * norm / bound) if norm > 0 else share
    return _without_noise(noise, factor=share)


def _without_noise(noise: NoisePlan, *, factor: float) -> NoisePlan:
    groups = noise.group_bounds
    if groups is not None:
        scaled = {"adapter": groups.adapter * factor, "head": groups.head * factor}
        groups = type(groups).model_validate(scaled)
    sensitivity = noise.assumed_sensitivity * factor
    return NoisePlan(
        stage="gradient",
        clip_norm=noise.clip_norm * factor,
        group_bounds=groups,
        assumed_sensitivity=sensitivity,
        noise_stddev=_NO_NOISE * sensitivity,
        sampling_rate=1.0,
        steps=1,
        event=GaussianEvent(noise_multiplier=_NO_NOISE),
    )


def _replanned(noise: NoisePlan, *, steps: int) -> NoisePlan:
    event: EventRecord = noise.event
    step = event.event if isinstance(event, SelfComposedEvent) else event
    composed = SelfComposedEvent(event=step, count=steps)
    return noise.model_copy(update={"steps": steps, "event": composed})


def _still(recipe: Recipe, plan: NoisePlan) -> Recipe:
    """Return the recipe with steps too small to move the model away from its random state."""
    changed = {"learning_rate": _STILL, "local_steps": plan.steps}
    return replace(recipe, noise=plan, training=recipe.training.model_copy(update=changed))


def _observed_units(subject: Subject) -> int:
    # About eight units a step: enough to tell coins from shuffled batches, cheap to do one by one.
    wanted = max(16, math.ceil(8 / subject.recipe.noise.sampling_rate))
    return min(wanted, subject.columns.n_units)


def _first_units(columns: Columns, n_units: int) -> Columns:
    return chosen_units(columns, range(min(n_units, columns.n_units)))


def _shortened(columns: Columns) -> Columns:
    """Return rows of at most 8 tokens: noise and coins do not depend on what rows say."""

    def cut(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: c[:, :_SHORT] if c.dim() > 1 else c for n, c in tensors.items()}

    return replace(columns, tensors=cut(columns.tensors), dummy=cut(columns.dummy))


def _difference(one: Gradients, other: Gradients) -> Gradients:
    return {name: one[name] - other[name] for name in one}


@contextmanager
def _kept(trainee: Trainee) -> Iterator[None]:
    before = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in trainee.parameters.items():
                parameter.copy_(before[name])


@contextmanager
def _random_state(trainee: Trainee, stream: NoiseStream) -> Iterator[None]:
    """Move every trained tensor at random for a while: gradients of all of them then flow."""
    with _kept(trainee):
        with torch.no_grad():
            for _, parameter in sorted(trainee.parameters.items()):
                drawn = torch.from_numpy(stream.normal(tuple(parameter.shape)))
                parameter.add_(_SPREAD * drawn.to(parameter.dtype))
        yield


def _fingerprints(trainee: Trainee) -> dict[str, bytes]:
    """Return a hash of every tensor of the module that training may not touch."""
    trained = {id(parameter) for parameter in trainee.parameters.values()}
    others = [*trainee.module.named_parameters(), *trainee.module.named_buffers()]
    return {name: _fingerprint(tensor) for name, tensor in others if id(tensor) not in trained}


def _fingerprint(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return blake2b(flat.numpy(), digest_size=16).digest()
