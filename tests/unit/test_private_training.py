"""Clipping row by row against the definition: one backward pass per row, clipped, added up."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import EncodedRows
from fl_core.models.losses import row_losses
from fl_core.models.peft_state import AdaptedModel
from fl_core.privacy.randomness import SecureStream, SeededStream
from fl_core.training.batches import columns_of, micro_batches
from fl_core.training.capture import Capture
from fl_core.training.private_training import (
    clip_units,
    clipped_sum,
    noised_gradient,
    summed_units,
    unit_gradients,
)
from fl_core.training.trainee import trainee_of
from tests.row_by_row import one_by_one
from tests.tiny_models import ANSWERS, CLASSES, noise_plan, take, tiny_model, tiny_rows

torch.set_num_threads(1)

# Between the smallest and the largest norm of the rows below, so that some are clipped.
CLIP = {"classification": 3.0, "causal_lm": 0.35}
MODELS = [
    pytest.param(CLASSES, {}, id="classes"),
    pytest.param(CLASSES, {"rule": "ffa_lora"}, id="classes-ffa"),
    pytest.param(ANSWERS, {}, id="answers"),
]


def private_sum(model: AdaptedModel, rows: EncodedRows, clip_norm: float, micro_batch: int = 4):
    columns = columns_of(rows)
    batches = micro_batches(columns, np.arange(len(rows)), micro_batch)
    return clipped_sum(trainee_of(model), batches, bounds=clip_norm, dummy=columns.dummy).gradients


@pytest.mark.parametrize(("task", "changes"), MODELS)
def test_clipped_sum_equals_one_backward_pass_per_row(task: TaskSpec, changes):
    model, rows = tiny_model(task, **changes), tiny_rows(task, 10)
    expected, norms = one_by_one(model, rows, CLIP[task.kind])

    found = private_sum(model, rows, CLIP[task.kind])

    assert min(norms) < CLIP[task.kind] < max(norms)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert error < 2e-5, name


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 32])
def test_sum_does_not_depend_on_the_micro_batch(micro_batch):
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 10)
    expected, _ = one_by_one(model, rows, 1.0)

    found = private_sum(model, rows, 1.0, micro_batch)

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-5, atol=2e-6)


def clipped_units(gradients, bounds, *, is_unit=None):
    """What every unit adds to the sum, from the factors that the sum is taken with."""
    n_units = len(next(iter(gradients.values())))
    clipping = clip_units(
        gradients, torch.ones(n_units, dtype=torch.bool) if is_unit is None else is_unit, bounds
    )
    summed_units(gradients, clipping)
    return {
        name: gradient * clipping.factors[name].view(-1, *[1] * (gradient.dim() - 1))
        for name, gradient in gradients.items()
    }


def test_clipping_bounds_every_row_over_all_tensors_together():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 8)
    trainee = trainee_of(model)
    (micro,) = micro_batches(columns_of(rows), np.arange(8), 8)

    with Capture(trainee, n_rows=8) as capture:
        gradients = unit_gradients(trainee, micro, capture)
    clipped = clipped_units(gradients, 0.1)

    norms = torch.sqrt(sum(g.double().flatten(1).square().sum(dim=1) for g in clipped.values()))
    torch.testing.assert_close(norms, torch.full((8,), 0.1, dtype=torch.float64), rtol=2e-6, atol=0)
    assert (norms <= 0.1).all()


def test_row_under_the_clip_norm_is_left_as_it_is():
    gradients = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])}

    clipped = clipped_units(gradients, 1.0)

    # Norms are 5, 0.5 and 0: the first is scaled by 1/5.
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped["w"][1:], expected[1:], rtol=0, atol=0)
    torch.testing.assert_close(clipped["w"], expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("size", [1e10, 1e30, 3e38], ids=str)
def test_huge_finite_gradient_is_clipped_and_not_lost_in_its_own_square(size):
    # Squares above float32's 3.4e38, and a factor below its smallest normal number.
    gradients = {"w": torch.tensor([[0.6 * size, 0.8 * size]])}

    clipped = clipped_units(gradients, 1.0)

    norm = float(clipped["w"].double().norm())
    assert norm <= 1.0
    torch.testing.assert_close(clipped["w"], torch.tensor([[0.6, 0.8]]), rtol=1e-5, atol=0)


@given(
    norms=st.lists(st.floats(1e-12, 1e25), min_size=1, max_size=6),
    clip_norm=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_no_units_share_of_the_sum_is_above_the_bound(norms, clip_norm, seed):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(len(norms), 7))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = torch.from_numpy((directions * np.array(norms)[:, None]).astype(np.float32))

    clipped = clipped_units({"a": rows[:, :3].clone(), "b": rows[:, 3:].clone()}, clip_norm)

    lengths = torch.cat([clipped["a"], clipped["b"]], dim=1).double().norm(dim=1)
    assert (lengths <= clip_norm).all()
    expected = np.minimum(rows.double().norm(dim=1).numpy(), clip_norm)
    np.testing.assert_allclose(lengths.numpy(), expected, rtol=3e-6)


def test_answer_loss_is_the_mean_over_the_rows_own_answer_tokens():
    logits = torch.zeros(2, 4, 5)
    logits[0, 1, 3] = 2.0
    labels = torch.tensor([[-100, -100, 3, 4], [-100, -100, -100, -100]])

    losses = row_losses(logits, labels)

    # Token 3 has log-probability 2 - ln(e^2 + 4); token 4 is one of five alike, ln 5.
    expected = (np.log(np.e**2 + 4) - 2 + np.log(5)) / 2
    np.testing.assert_allclose(losses.numpy(), [expected, 0.0], rtol=1e-6)


def test_row_without_answer_adds_nothing():
    model, rows = tiny_model(ANSWERS), tiny_rows(ANSWERS, 5)
    rows.labels[2] = -100
    expected = private_sum(model, take(rows, [0, 1, 3, 4]), 1.0)

    found = private_sum(model, rows, 1.0)

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_padding_changes_no_gradient():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 6)
    other = take(rows, slice(None))
    other.input_ids[other.attention_mask == 0] = 7
    expected = private_sum(model, rows, 1.0)

    found = private_sum(model, other, 1.0)

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8)


def test_noise_has_the_stddev_of_the_plan_and_the_public_divisor():
    total = {"w": torch.full((400, 500), 7.0, dtype=torch.float64)}
    plan = noise_plan(clip_norm=0.5, multiplier=1.2)

    gradient = noised_gradient(
        total, noise_stddev=plan.noise_stddev, divisor=4.0, stream=SeededStream(3)
    )["w"]

    # stddev 1.2 * 0.5 / 4 = 0.15. The sample's relative error has stddev 1/sqrt(2 * 200000)
    # = 0.16 %; 5 of these is a false alarm of 6e-7. The mean's stddev is 0.15/sqrt(200000).
    assert abs(float(gradient.double().std()) / 0.15 - 1) < 5 * 0.0016
    assert abs(float(gradient.double().mean()) - 7 / 4) < 5 * 0.15 / np.sqrt(200_000)


def test_noise_differs_between_steps_and_tensors():
    total = {"a": torch.zeros(50, dtype=torch.float64), "b": torch.zeros(50, dtype=torch.float64)}
    stream = SecureStream()

    first, second = (
        noised_gradient(total, noise_stddev=0.24, divisor=1.0, stream=stream) for _ in range(2)
    )

    draws = torch.cat([first["a"], first["b"], second["a"], second["b"]])
    assert len(draws.unique()) == 200
