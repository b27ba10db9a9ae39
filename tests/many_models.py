"""Tiny random models of many architectures, with all linear modules that a pair can be put on."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from fl_core.models.losses import row_losses

WIDE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
# ALBERT runs one layer three times: every one of its modules is used three times.
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(**WIDE)),
    "roberta": lambda: RobertaModel(RobertaConfig(**WIDE)),
    "albert": lambda: AlbertModel(
        AlbertConfig(embedding_size=16, **{**WIDE, "num_hidden_layers": 3})
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=50,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            attn_implementation="eager",
        )
    ),
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **WIDE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **WIDE)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **WIDE)
    ),
}
TARGETS = {
    "bert": ("query", "key", "value", "dense"),
    "roberta": ("query", "key", "value", "dense"),
    "albert": ("query", "key", "value", "dense", "ffn", "ffn_output"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "llama": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    ),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    # Its experts are no linear modules; attention beside them is adapted as anywhere.
    "mixtral": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt-neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


def logits_losses(model: nn.Module, batch) -> torch.Tensor:
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return row_losses(output.logits, batch["labels"])
