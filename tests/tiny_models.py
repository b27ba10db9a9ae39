"""Random models of a few thousand weights, and rows for them; nothing is read from disk."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fl_core.adapters.pair import LORA_A, LoraState
from fl_core.adapters.peft_layout import initial_state
from fl_core.campaign.specs import AdapterSpec, TaskSpec, TrainingSpec
from fl_core.data.prompts import IGNORED, EncodedRows
from fl_core.models.loading import LoadedBase, adapter_layout
from fl_core.models.peft_state import AdaptedModel, attach
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.local_training import LocalSetting, train_round
from fl_core.updates.records import GaussianEvent, PoissonEvent, SelfComposedEvent

VOCABULARY = 50
WIDTH = 10
CLASSES = TaskSpec(labels=("a", "b", "c"), max_tokens=WIDTH)
ANSWERS = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=WIDTH)
TARGETS = {"classification": ("query", "value"), "causal_lm": ("q_proj", "v_proj")}


def tiny_base(task: TaskSpec, *, seed: int = 0) -> LoadedBase:
    """Return a frozen two-layer BERT, or Llama for a causal LM, with random weights."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }
    if task.kind == "classification":
        model = BertModel(BertConfig(**size))
    else:
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **size))
    model = model.eval().requires_grad_(requires_grad=False)
    return LoadedBase(model=model, tokenizer=None, path=Path("tiny"), hidden_size=32)


def locked_spec(base: LoadedBase, task: TaskSpec, **changes: Any) -> AdapterSpec:
    """Return an adapter of rank 3 on the attention of a base model."""
    targets = TARGETS[task.kind]
    modules, head_inputs = adapter_layout(base, targets, task)
    fields: dict[str, Any] = {"rank": 3, "alpha": 6.0, "targets": targets, **changes}
    return AdapterSpec(modules=modules, head_inputs=head_inputs, **fields)


def random_state(
    spec: AdapterSpec, task: TaskSpec, *, seed: int = 1, size: float = 0.3
) -> LoraState:
    """Return an adapter of random tensors, so that every gradient flows; FFA-LoRA's A is public."""
    rng = np.random.default_rng(seed)
    state = initial_state(spec, task)
    return state.replaced(
        {
            name: (tensor + rng.normal(0.0, size, tensor.shape)).astype(np.float32)
            for name, tensor in state.tensors().items()
            if not (spec.rule == "ffa_lora" and name.endswith(LORA_A))
        }
    )


def tiny_model(task: TaskSpec, **changes: Any) -> AdaptedModel:
    """Return a tiny base model with a random adapter."""
    base = tiny_base(task)
    spec = locked_spec(base, task, **changes)
    return attach(base, spec, task, random_state(spec, task))


def tiny_rows(task: TaskSpec, n: int, *, seed: int = 2) -> EncodedRows:
    """Return random rows of different lengths, padded on the right.

    Causal rows have 1 to 4 answer tokens at their end.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCABULARY, (n, WIDTH))
    lengths = rng.integers(5, WIDTH + 1, n)
    mask = (np.arange(WIDTH) < lengths[:, None]).astype(np.int64)
    ids *= mask
    if task.kind == "classification":
        return EncodedRows(ids, mask, rng.integers(0, len(task.labels), n))
    begins = lengths - rng.integers(1, 5, n)
    is_answer = (np.arange(WIDTH) >= begins[:, None]) & (mask == 1)
    return EncodedRows(ids, mask, np.where(is_answer, ids, IGNORED))


def take(rows: EncodedRows, positions: Any) -> EncodedRows:
    """Return some rows, in that order."""
    columns = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    return EncodedRows(**{n: c if c is None else c[positions] for n, c in columns.items()})


def noise_plan(
    *, clip_norm: float = 0.3, multiplier: float = 0.8, rate: float = 0.5, steps: int = 3
) -> NoisePlan:
    """Return a plan for noise on gradients."""
    event = PoissonEvent(sampling_rate=rate, event=GaussianEvent(noise_multiplier=multiplier))
    return NoisePlan(
        stage="gradient",
        clip_norm=clip_norm,
        assumed_sensitivity=clip_norm,
        noise_stddev=multiplier * clip_norm,
        sampling_rate=rate,
        steps=steps,
        event=SelfComposedEvent(event=event, count=steps),
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A real tokenizer of a few words, for the reload check's public texts."""
    words = ("[PAD]", "[UNK]", "the", "oil", "motor", "filter", "rear", "after")
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def train_locally(  # noqa: PLR0913  campaign numbers beside what the site adds, by name
    model: AdaptedModel,
    rows: EncodedRows,
    *,
    training: TrainingSpec,
    divisor: float,
    noise: NoisePlan | None,
    stream: NoiseStream,
) -> dict[str, Any]:
    """Train the model in place on rows that are units of their own; return its delta."""
    setting = LocalSetting(training, divisor, noise)
    return train_round(model, rows, setting=setting, stream=stream).delta
