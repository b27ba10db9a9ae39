"""SOUNDNESS, rules 1, 2, 3, 11 and 18 for units of several rows: drawn, clipped, noised as one."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fl_core.campaign.guarantees import GroupBounds
from fl_core.campaign.specs import TrainingSpec
from fl_core.data.prompts import EncodedRows
from fl_core.models.peft_state import AdaptedModel
from fl_core.privacy.randomness import SeededStream
from fl_core.training.batches import columns_of, micro_batches, micro_shape
from fl_core.training.local_training import LocalSetting, train_round
from fl_core.training.private_training import (
    clip_units,
    clipped_sum,
    summed_units,
)
from fl_core.training.trainee import trainee_of
from tests.row_by_row import largest_error, norm_of, shares_of, unit_by_unit
from tests.tiny_models import ANSWERS, CLASSES, noise_plan, take, tiny_model, tiny_rows

torch.set_num_threads(1)
CLIP_NORM = 0.3
# Units of 3, 1, 4, 2 and 2 rows, not side by side.
UNITS = np.array([7, 2, 9, 2, 9, 7, 4, 9, 7, 4, 9, 1])


def rows_of_units(task=CLASSES, units=UNITS, *, seed: int = 2) -> EncodedRows:
    return dataclasses.replace(tiny_rows(task, len(units), seed=seed), units=np.array(units))


def total_of(model: AdaptedModel, rows, *, limit, micro_batch=4, chosen=None, bounds=CLIP_NORM):
    columns = columns_of(rows, max_rows_per_unit=limit)
    units = np.arange(columns.n_units) if chosen is None else np.array(chosen, dtype=np.intp)
    batches = micro_batches(columns, units, micro_batch)
    return clipped_sum(trainee_of(model), batches, bounds=bounds, dummy=columns.dummy)


@pytest.mark.parametrize(
    ("limit", "micro_batch"),
    [(4, 8), (4, 6), (4, 4), (4, 1), (4, 3), (2, 5), (1, 4)],
    ids=str,
)
@pytest.mark.parametrize(("task", "bound"), [(CLASSES, 1.2), (ANSWERS, 0.45)], ids=["cls", "clm"])
def test_rule_03_a_unit_adds_the_mean_of_its_rows_clipped_once(task, bound, limit, micro_batch):
    model, rows = tiny_model(task), rows_of_units(task)
    expected, norms = unit_by_unit(model, rows, rows.units, bound=bound, limit=limit)
    assert min(norms) < bound < max(norms)

    found = total_of(model, rows, limit=limit, micro_batch=micro_batch, bounds=bound)

    assert (found.n_units, found.n_whole) == (5, sum(norm <= bound for norm in norms))
    assert largest_error(found.gradients, expected) < 2e-5


def test_rule_03_a_person_with_fifty_rows_moves_the_sum_as_much_as_one_with_one():
    model, others = tiny_model(CLASSES), tiny_rows(CLASSES, 4)
    fifty = take(tiny_rows(CLASSES, 1, seed=8), np.zeros(50, dtype=np.intp))
    rows = EncodedRows(
        *(
            np.concatenate([getattr(others, name), getattr(fifty, name)])
            for name in ("input_ids", "attention_mask", "labels")
        )
    )
    as_one = dataclasses.replace(rows, units=np.array([0, 1, 2, 3] + [4] * 50))
    moved = {}

    for name, data, limit in (("one person", as_one, 50), ("fifty rows", rows, 1)):
        with_person = total_of(model, data, limit=limit, micro_batch=16).gradients
        chosen = range(4)
        without = total_of(model, data, limit=limit, micro_batch=16, chosen=chosen).gradients
        moved[name] = norm_of({n: with_person[n] - without[n] for n in with_person})

    # Fifty equal rows pull in one direction: their clipped gradients add up to 50 C. The noise of
    # both is the same number, NoisePlan.noise_stddev.
    assert moved["one person"] <= CLIP_NORM * (1 + 1e-5)
    assert moved["one person"] == pytest.approx(CLIP_NORM, rel=1e-4)
    assert moved["fifty rows"] == pytest.approx(50 * CLIP_NORM, rel=1e-4)


@pytest.mark.parametrize("gone", range(5))
def test_rule_01_the_sum_moves_by_at_most_the_clip_norm_when_a_unit_goes(gone):
    model, rows = tiny_model(CLASSES), rows_of_units()
    everyone = total_of(model, rows, limit=4).gradients

    fewer = total_of(model, rows, limit=4, chosen=[u for u in range(5) if u != gone]).gradients

    assert norm_of({n: everyone[n] - fewer[n] for n in everyone}) <= CLIP_NORM * (1 + 1e-5)


@pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])
@pytest.mark.parametrize("limit", [2, 4])
def test_rule_01_one_unit_moves_no_bit_of_another_units_clipped_gradient(task, limit):
    model, rows = tiny_model(task), rows_of_units(task)
    columns = columns_of(rows, max_rows_per_unit=limit)
    (micro,) = micro_batches(columns, np.arange(5), 5 * limit)
    everyone = shares_of(model, micro, bounds=CLIP_NORM)
    for gone in range(5):
        inputs = {name: column.clone() for name, column in micro.inputs.items()}
        is_unit, weights = micro.is_unit.clone(), micro.weights.clone()
        places = slice(gone * limit, (gone + 1) * limit)
        for name, column in inputs.items():
            column[places] = columns.dummy[name]
        is_unit[gone], weights[places] = False, 0.0
        fewer = shares_of(
            model,
            dataclasses.replace(micro, inputs=inputs, is_unit=is_unit, weights=weights),
            bounds=CLIP_NORM,
        )
        others = [unit for unit in range(5) if unit != gone]
        for name, share in everyone.items():
            assert torch.equal(share[others], fewer[name][others]), (gone, name)
            assert not fewer[name][gone].any()


@pytest.mark.parametrize(
    ("micro_batch", "limit", "units", "pass_rows", "n_passes"),
    [
        (16, 1, 16, 16, 1),
        (16, 4, 4, 16, 1),
        (16, 5, 4, 20, 1),  # ceil(16 / 5) units of 5 places
        (4, 4, 1, 4, 1),
        (4, 9, 1, 4, 3),  # one unit of 9 rows in 3 passes of 4
        (1, 3, 1, 1, 3),
    ],
)
def test_rule_11_every_forward_pass_has_one_public_shape(
    micro_batch, limit, units, pass_rows, n_passes
):
    rows = rows_of_units()
    columns = columns_of(rows, max_rows_per_unit=limit)
    shape = micro_shape(micro_batch=micro_batch, rows_per_unit=limit)
    assert (shape.n_units, shape.pass_rows, shape.n_passes) == (units, pass_rows, n_passes)

    for n_chosen in range(columns.n_units + 1):
        for micro in micro_batches(columns, np.arange(n_chosen), micro_batch):
            passes = list(micro.passes())
            assert len(passes) == n_passes
            for inputs, weights in passes:
                assert inputs["input_ids"].shape == (pass_rows, CLASSES.max_tokens)
                assert weights.shape == (pass_rows,)


def test_rule_03_the_first_rows_of_a_unit_are_kept_and_its_weights_add_up_to_one():
    rows = rows_of_units()
    columns = columns_of(rows, max_rows_per_unit=2)
    (micro,) = micro_batches(columns, np.arange(5), 10)

    # Unit numbers 1, 2, 4, 7, 9; of 7 the rows 0 and 5, of 9 the rows 2 and 4.
    ids = micro.inputs["input_ids"].numpy()
    np.testing.assert_array_equal(ids[6:10], rows.input_ids[[0, 5, 2, 4]])
    assert micro.weights.tolist() == [1.0, 0.0] + [0.5] * 8


def test_rule_03_coins_are_thrown_for_units_and_bring_all_their_rows():
    model, rows = tiny_model(CLASSES), rows_of_units()
    numbers = {tuple(ids): unit for ids, unit in zip(rows.input_ids, rows.units, strict=True)}
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args: seen.extend(numbers.get(tuple(r), -1) for r in args[0].tolist())
    )
    # The coins that the stream will throw: the first of each step, then the noise.
    stream, expected = SeededStream(5), []
    shapes = {n: tuple(p.shape) for n, p in sorted(model.trainable_parameters().items())}
    for _ in range(6):
        drawn = np.unique(UNITS)[stream.coins(5, 0.5)]
        expected += [int(u) for u in UNITS if u in drawn]
        for shape in shapes.values():
            stream.normal(shape)
    setting = LocalSetting(
        TrainingSpec(local_steps=6, batch_size=4, learning_rate=0.01, micro_batch=8),
        divisor=4.0,
        noise=noise_plan(steps=6, rate=0.5),
        max_rows_per_unit=4,
    )

    train_round(model, rows, setting=setting, stream=SeededStream(5))

    assert sorted(u for u in seen if u >= 0) == sorted(expected)


def test_rule_02_a_unit_with_one_bad_row_counts_as_zero_with_all_its_rows():
    model, rows = tiny_model(CLASSES), rows_of_units()
    rows.labels[4] = 99  # one row of unit 9, the last one
    expected = total_of(model, rows_of_units(), limit=4, chosen=range(4))

    found = total_of(model, rows, limit=4)

    assert (found.n_units, found.n_whole) == (5, expected.n_whole)
    for name, tensor in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], tensor, rtol=1e-5, atol=1e-8)


def test_rule_02_a_unit_is_dropped_from_both_groups_if_one_is_not_finite():
    gradients = {
        "m.lora_B": torch.tensor([[0.1, 0.2], [0.3, 0.1]]),
        "head.bias": torch.tensor([[float("inf")], [0.4]]),
    }

    clipping = clip_units(gradients, torch.tensor([True, True]), GroupBounds(adapter=1.0, head=1.0))

    summed = summed_units(gradients, clipping)
    torch.testing.assert_close(summed["m.lora_B"], torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(summed["head.bias"], torch.tensor([0.4]))
    assert clipping.is_whole.tolist() == [False, True]


def test_rule_24_two_bounds_hold_each_in_its_group_and_together_as_a_root_of_squares():
    model, rows = tiny_model(CLASSES), rows_of_units()
    bounds = GroupBounds(adapter=0.01, head=0.02)

    for unit in range(5):
        share = total_of(model, rows, limit=4, chosen=[unit], bounds=bounds).gradients
        head = norm_of({n: t for n, t in share.items() if n.startswith("head.")})
        pairs = norm_of({n: t for n, t in share.items() if not n.startswith("head.")})

        assert pairs <= 0.01 * (1 + 1e-6)
        assert head <= 0.02 * (1 + 1e-6)
        # Raw norms of these units are above both bounds, so both are met.
        assert (pairs, head) == pytest.approx((0.01, 0.02), rel=1e-5)
        # sqrt(.01^2 + .02^2), what the noise is made for.
        assert math.hypot(pairs, head) <= 0.02236068 * (1 + 1e-6)
