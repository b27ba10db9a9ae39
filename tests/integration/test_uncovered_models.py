"""Trained tensors that clipping does not cover, as people bring them: refused by name.

All of it is asked on public rows, before a private one is read.
"""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from fl_core.campaign.specs import AdapterSpec
from fl_core.errors import CampaignError, TrainingError
from fl_core.models.loading import LoadedBase, adapter_layout
from fl_core.training.batches import columns_of
from fl_core.training.lock_checks import require_clippable
from fl_core.training.model_checks import require_private
from fl_core.training.trainee import Trainee
from tests.many_models import DECODERS, ENCODERS, TARGETS, WIDE, logits_losses
from tests.tiny_models import ANSWERS, CLASSES, tiny_rows
from tests.worlds import campaign_of

torch.set_num_threads(1)


def test_linear_layer_that_is_stored_transposed_is_refused_when_a_campaign_is_locked():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config)
    base = LoadedBase(model=model, tokenizer=None, path=None, hidden_size=32)

    with pytest.raises(CampaignError, match=r"'transformer\.h\.0\.attn\.c_attn' is a Conv1D"):
        adapter_layout(base, ("c_attn",), ANSWERS)


def frozen(make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().requires_grad_(requires_grad=False)


def trainee_by_grad(model: nn.Module) -> Trainee:
    return Trainee(
        model, {n: p for n, p in model.named_parameters() if p.requires_grad}, logits_losses
    )


def tied_head() -> nn.Module:
    """What ``modules_to_save=["lm_head"]`` trains where head and embedding are one tensor."""
    model = frozen(lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **WIDE)))
    model.lm_head.weight.requires_grad_()
    return model


def with_pairs(make, **options) -> nn.Module:
    return inject_adapter_in_model(LoraConfig(r=2, **options), frozen(make))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(tied_head, "embed_tokens.weight", id="tied"),
        pytest.param(
            lambda: with_pairs(DECODERS["llama"], target_modules=["q_proj"], use_dora=True),
            "lora_magnitude_vector",
            id="dora",
        ),
        pytest.param(
            lambda: with_pairs(DECODERS["llama"], target_modules=["embed_tokens"]),
            "lora_embedding_A",
            id="lora-on-embedding",
        ),
        pytest.param(
            lambda: with_pairs(
                DECODERS["llama"],
                target_modules=["q_proj"],
                layers_to_transform=[0],
                trainable_token_indices={"embed_tokens": [1, 2]},
            ),
            "trainable_tokens_delta",
            id="trained-tokens",
        ),
        pytest.param(
            lambda: with_pairs(ENCODERS["bert"], target_modules=["query"], bias="all"),
            "LayerNorm.bias",
            id="norms-and-biases",
        ),
    ],
)
def test_what_clipping_does_not_cover_is_refused_by_name(make, name):
    trainee = trainee_by_grad(make())

    with pytest.raises(TrainingError, match=name):
        require_private(trainee, columns_of(tiny_rows(ANSWERS, 2)).tensors)


def test_model_that_cannot_be_clipped_is_refused_before_any_site_is_asked():
    # OPT folds rows and places into one dimension before its feed-forward layers.
    config = OPTConfig(
        vocab_size=50,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        attn_implementation="eager",
    )
    model = frozen(lambda: OPTForCausalLM(config))
    base = LoadedBase(model=model, tokenizer=None, path=None, hidden_size=32)
    modules, _ = adapter_layout(base, ("q_proj", "fc1"), ANSWERS)
    spec = AdapterSpec(rank=2, targets=("q_proj", "fc1"), modules=modules)
    campaign = campaign_of(task=ANSWERS, adapter=spec)

    with pytest.raises(TrainingError, match=r"fc1\.lora_.*rows cannot be told apart"):
        require_clippable(base, campaign)


@pytest.mark.parametrize("rule", ["lora", "ffa_lora", "rolora"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_model_that_can_be_clipped_is_locked_and_stays_as_it_was(name, rule):
    task = CLASSES if name == "bert" else ANSWERS
    model = frozen((ENCODERS | DECODERS)[name])
    base = LoadedBase(model=model, tokenizer=None, path=None, hidden_size=32)
    before = {n: p.clone() for n, p in model.named_parameters()}
    targets = TARGETS[name][:2]
    modules, head_inputs = adapter_layout(base, targets, task)
    spec = AdapterSpec(rule=rule, rank=2, targets=targets, modules=modules, head_inputs=head_inputs)

    require_clippable(base, campaign_of(task=task, adapter=spec))

    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class Stacked(nn.Module):
    """Folds rows and places into one dimension before its layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).view(*x.shape[:2], -1)


def test_layer_that_sees_rows_and_places_in_one_dimension_is_refused_by_name():
    model = frozen(DECODERS["llama"])
    model.model.layers[0].self_attn.o_proj = Stacked(nn.Linear(32, 32))
    trainee = trainee_by_grad(model)

    with pytest.raises(TrainingError, match=r"o_proj\.layer\.weight"):
        require_private(trainee, columns_of(tiny_rows(ANSWERS, 2)).tensors)
