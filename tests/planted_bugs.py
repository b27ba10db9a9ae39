"""Bugs that void a guarantee, planted into the product's own training.

Each is a context in which the training loop is wrong in one way that has been seen in the wild or
follows from a rule of soundness. Everything else stays the product's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from fl_core.adapters.pair import HEAD
from fl_core.privacy.randomness import SeededStream
from fl_core.training import private_training, steps
from fl_core.training.batches import shuffled_batches

Plant = Callable[[], Iterator[None]]


def noise_times(factor: float, only: str = "") -> Plant:
    """Multiply the noise of the tensors whose names begin with ``only``."""
    honest = steps.noised_gradient

    def planted(total, *, noise_stddev, divisor, stream):
        parts = {}
        for name in sorted(total):
            own = factor if name.startswith(only) else 1.0
            parts |= honest(
                {name: total[name]},
                noise_stddev=noise_stddev * own,
                divisor=divisor,
                stream=stream,
            )
        return parts

    return lambda: patch.object(steps, "noised_gradient", planted)


def no_clipping_of_one_module():
    """Leave the gradient of one tensor as it is, whatever its norm."""
    honest = private_training.clip_units

    def planted(gradients, is_unit, bounds):
        clipping = honest(gradients, is_unit, bounds)
        factors = dict(clipping.factors)
        name = next(name for name in sorted(factors) if name.endswith("lora_B"))
        factors[name] = clipping.counts.float()
        return replace(clipping, factors=factors)

    return patch.object(private_training, "clip_units", planted)


def clipped_at_twice_the_norm():
    """Clip every unit, at a bound that is not the one accounted for."""
    honest = private_training.clip_units

    def planted(gradients, is_unit, bounds):
        return honest(gradients, is_unit, 2 * bounds)

    return patch.object(private_training, "clip_units", planted)


def noise_from_a_known_seed():
    """Draw the noise of every step from one seed."""
    honest = steps.noised_gradient

    def planted(total, *, noise_stddev, divisor, stream):
        seeded = SeededStream(7)
        return honest(total, noise_stddev=noise_stddev, divisor=divisor, stream=seeded)

    return patch.object(steps, "noised_gradient", planted)


@contextmanager
def divided_by_the_private_count():
    """Divide by the number of units that were drawn."""
    honest, draw, drawn = steps.noised_gradient, steps.poisson_batch, [0]

    def planted_batch(n_units, rate, stream):
        chosen = draw(n_units, rate, stream)
        drawn[0] = max(1, len(chosen))
        return chosen

    def planted(total, *, noise_stddev, divisor, stream):
        return honest(total, noise_stddev=noise_stddev, divisor=drawn[0], stream=stream)

    with (
        patch.object(steps, "poisson_batch", planted_batch),
        patch.object(steps, "noised_gradient", planted),
    ):
        yield


def shuffled_batches_accounted_as_poisson():
    """Take batches of one size from shuffled epochs."""
    epochs: dict[int, Iterator] = {}

    def planted(n_units, rate, stream):
        if id(stream) not in epochs:
            epochs[id(stream)] = shuffled_batches(n_units, round(n_units * rate), stream)
        return np.sort(next(epochs[id(stream)]))

    return patch.object(steps, "poisson_batch", planted)


def batch_clipped_as_one():
    """Clip the sum of the batch, not every unit."""
    honest = steps.clipped_sum

    def planted(trainee, batches, *, bounds, dummy):
        step = honest(trainee, batches, bounds=1e30, dummy=dummy)
        norm = sum(float(t.square().sum()) for t in step.gradients.values()) ** 0.5
        factor = min(1.0, bounds / norm) if norm > 0 else 1.0
        step.gradients = {name: t * factor for name, t in step.gradients.items()}
        return step

    return patch.object(steps, "clipped_sum", planted)


@contextmanager
def coins_from_a_known_seed():
    """Draw the coins of every training from one seed, as a run that must be repeatable would."""
    draw, seeded = steps.poisson_batch, {}

    def planted(n_units, rate, stream):
        # One generator per training; the training's own stream tells them apart.
        coins = seeded.setdefault(id(stream), (SeededStream(7), stream))[0]
        return draw(n_units, rate, coins)

    with patch.object(steps, "poisson_batch", planted):
        yield


@contextmanager
def personal_head_beside_the_steps():
    """Train a head that stays at the site on exact gradients, between the noised steps."""
    honest = steps.clipped_sum

    def planted(trainee, batches, *, bounds, dummy):
        micros = list(batches)
        step = honest(trainee, micros, bounds=bounds, dummy=dummy)
        head = trainee.module.head
        for micro in micros:
            trainee.losses(trainee.module, micro.inputs).sum()
            own = head.weight.detach().requires_grad_()
            logits = torch.func.functional_call(
                trainee.module,
                {"head.weight": own},
                (micro.inputs["input_ids"], micro.inputs["attention_mask"]),
            )
            loss = torch.nn.functional.cross_entropy(logits, micro.inputs["labels"])
            (slope,) = torch.autograd.grad(loss, own)
            with torch.no_grad():
                head.weight -= 0.1 * slope
        return step

    with patch.object(steps, "clipped_sum", planted):
        yield


PLANTED: dict[str, Plant] = {
    "noise off by 10": noise_times(0.1),
    "noise off by 1 %": noise_times(0.99),
    "clipping skipped on one module": no_clipping_of_one_module,
    "divided by the private count": divided_by_the_private_count,
    "shuffled batches accounted as Poisson": shuffled_batches_accounted_as_poisson,
    "batch clipped as one": batch_clipped_as_one,
    "coins from a known seed": coins_from_a_known_seed,
    "head without noise": noise_times(0.0, only=HEAD),
    "personal head beside the steps": personal_head_beside_the_steps,
}
