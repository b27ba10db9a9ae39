"""The files of an adapter: same state, same bytes; read back strictly; loaded by plain peft."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load, save
from safetensors.torch import load_file
from tiny_models import ANSWERS, CLASSES, locked_spec, random_state, tiny_base, tiny_rows
from torch.nn import functional

from fl_core.adapters.pair import LORA_A, LORA_B
from fl_core.adapters.peft_layout import (
    adapter_sha256,
    from_files,
    initial_state,
    tensor_shapes,
    to_files,
)
from fl_core.adapters.rules import kinds_of_rounds
from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.errors import AdapterMismatch, CampaignError
from fl_core.models.peft_state import attach

torch.set_num_threads(1)
SPEC = AdapterSpec(
    rank=2, alpha=4, targets=("q",), modules={"x.q": (5, 3), "y.q": (4, 3)}, head_inputs=6
)
TASKS = pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])


def files_of(task: TaskSpec, spec: AdapterSpec = SPEC) -> dict[str, bytes]:
    return to_files(random_state(spec, task), spec=spec, task=task, base_name="base")


def test_shapes_are_those_of_a_low_rank_change_and_a_head():
    assert tensor_shapes(SPEC, CLASSES) == {
        "head.bias": (3,),
        "head.weight": (3, 6),
        "x.q.lora_A": (2, 3),
        "x.q.lora_B": (5, 2),
        "y.q.lora_A": (2, 3),
        "y.q.lora_B": (4, 2),
    }


def test_frozen_a_is_in_the_adapter_and_not_in_an_update():
    ffa = SPEC.model_copy(update={"rule": "ffa_lora"})

    names = tensor_shapes(ffa, ANSWERS, round_number=1)

    assert list(names) == ["x.q.lora_B", "y.q.lora_B"]
    assert tensor_shapes(ffa, ANSWERS) == tensor_shapes(SPEC, ANSWERS)


def test_adapter_that_is_not_locked_has_no_shapes():
    with pytest.raises(CampaignError, match="shapes of the adapter are unknown"):
        tensor_shapes(AdapterSpec(targets=("q",)), CLASSES)


# One row of A of width d under U(-b, b) has expected squared length d * b^2 / 3.
@pytest.mark.parametrize("rule", ["lora", "ffa_lora", "rolora", "head"])
def test_every_round_trains_what_the_first_of_its_kind_trains(rule):
    spec = SPEC.model_copy(update={"rule": rule})

    kinds = [tensor_shapes(spec, CLASSES, round_number=number) for number in kinds_of_rounds(spec)]
    rounds = [tensor_shapes(spec, CLASSES, round_number=number) for number in range(1, 7)]

    assert all(trained in kinds for trained in rounds)
    assert kinds == rounds[: len(kinds)]
    assert len({tuple(trained) for trained in kinds}) == len(kinds)


@pytest.mark.parametrize(("rule", "squared_length"), [("lora", 1 / 3), ("ffa_lora", 1.0)])
def test_first_adapter_changes_nothing_and_has_a_public_a(rule, squared_length):
    spec = AdapterSpec(rule=rule, rank=64, targets=("q",), modules={"q": (8, 512)}, head_inputs=6)

    state = initial_state(spec, CLASSES)

    a = state.pairs["q"].a
    bound = np.sqrt(3 * squared_length / 512)
    assert np.abs(a).max() <= np.float32(bound)
    assert np.mean(np.square(a).sum(axis=1)) == pytest.approx(squared_length, rel=0.05)
    assert not state.pairs["q"].b.any()
    assert not any(tensor.any() for tensor in state.head.values())
    assert np.array_equal(a, initial_state(spec, CLASSES).pairs["q"].a)
    other = spec.model_copy(update={"init_seed": 1})
    assert not np.array_equal(a, initial_state(other, CLASSES).pairs["q"].a)


@TASKS
def test_adapter_comes_back_as_it_was(task):
    state = random_state(SPEC, task)

    back = from_files(files_of(task), spec=SPEC, task=task)

    assert back.tensors().keys() == state.tensors().keys()
    for name, tensor in state.tensors().items():
        assert np.array_equal(back.tensors()[name], tensor)
    assert back.pairs["x.q"].scaling == 2.0


def test_equal_states_have_one_hash_and_any_changed_byte_another():
    files = files_of(CLASSES)

    assert adapter_sha256(files) == adapter_sha256(files_of(CLASSES))
    for name in files:
        assert adapter_sha256({**files, name: files[name] + b" "}) != adapter_sha256(files)


def test_files_say_how_logits_are_made_and_hold_no_path():
    config = json.loads(files_of(CLASSES)["fedloom.json"])

    assert config["task"] == "classification"
    assert config["labels"] == ["a", "b", "c"]
    assert config["pooling"] == "mean_layer_norm"
    assert config["max_tokens"] == CLASSES.max_tokens
    assert json.loads(files_of(CLASSES)["adapter_config.json"])["base_model_name_or_path"] == "base"


def with_tensors(files, change):
    tensors = load(files["adapter_model.safetensors"])
    change(tensors)
    return {**files, "adapter_model.safetensors": save(tensors)}


def with_config(files, **changes):
    config = {**json.loads(files["adapter_config.json"]), **changes}
    return {**files, "adapter_config.json": json.dumps(config).encode()}


A_NAME = "base_model.model.x.q.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        pytest.param(
            lambda f: with_tensors(f, lambda t: t.pop(A_NAME)), "'x.q.lora_A' first", id="missing"
        ),
        pytest.param(
            lambda f: with_tensors(f, lambda t: t.update({"z": t[A_NAME]})), "unknown", id="extra"
        ),
        pytest.param(
            lambda f: with_tensors(f, lambda t: t.update({A_NAME: t[A_NAME].T.copy()})),
            "has shape",
            id="shape",
        ),
        pytest.param(
            lambda f: with_tensors(f, lambda t: t[A_NAME].fill(np.nan)), "not_finite", id="nan"
        ),
        pytest.param(lambda f: with_config(f, lora_alpha=8), "lora_alpha", id="alpha"),
        pytest.param(lambda f: with_config(f, use_dora=True), "use_dora", id="dora"),
        pytest.param(lambda f: with_config(f, rank_pattern={"x": 9}), "rank_pattern", id="setting"),
        pytest.param(lambda f: {**f, "fedloom.json": b"{}"}, "labels", id="task"),
        pytest.param(lambda f: {**f, "adapter_config.json": b"\x80"}, "not JSON", id="no-json"),
        pytest.param(
            lambda f: {**f, "adapter_config.json": b"[" * 100_000}, "not JSON", id="nested-json"
        ),
        pytest.param(lambda f: {**f, "head.safetensors": b"\x80\x04"}, "payload", id="pickle"),
        pytest.param(
            lambda f: {n: d for n, d in f.items() if n != "head.safetensors"}, "files", id="no-head"
        ),
        pytest.param(lambda f: {**f, "extra.bin": b""}, "files", id="extra-file"),
    ],
)
def test_adapter_that_is_not_the_campaigns_is_refused(spoil, text):
    with pytest.raises(AdapterMismatch, match=text):
        from_files(spoil(files_of(CLASSES)), spec=SPEC, task=CLASSES)


@pytest.mark.parametrize("rule", ["lora", "ffa_lora"])
@TASKS
def test_plain_peft_gives_the_logits_of_the_trained_model(task, rule, tmp_path):
    base = tiny_base(task)
    spec = locked_spec(base, task, rule=rule)
    state = random_state(spec, task)
    rows = tiny_rows(task, 6)
    ids, mask = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask)
    trained = attach(base, spec, task, state)
    for name, data in to_files(state, spec=spec, task=task, base_name="tiny").items():
        (tmp_path / name).write_bytes(data)

    plain = PeftModel.from_pretrained(tiny_base(task).model, tmp_path).eval()

    with torch.inference_mode():
        output = plain(input_ids=ids, attention_mask=mask)
        if task is ANSWERS:
            logits = output.logits
        else:
            head = load_file(tmp_path / "head.safetensors")
            weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
            pooled = (output.last_hidden_state * weights).sum(dim=1)
            logits = functional.linear(
                functional.layer_norm(pooled, (32,)), head["weight"], head["bias"]
            )
        torch.testing.assert_close(logits, trained(ids, mask), rtol=1e-5, atol=1e-5)


@TASKS
def test_peft_finds_every_tensor_under_its_own_name(task, tmp_path):
    base = tiny_base(task)
    spec = locked_spec(base, task)
    state = random_state(spec, task)
    for name, data in to_files(state, spec=spec, task=task, base_name="tiny").items():
        (tmp_path / name).write_bytes(data)

    plain = PeftModel.from_pretrained(base.model, tmp_path)

    loaded = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): tensor.numpy()
        for name, tensor in plain.state_dict().items()
        if ".lora_" in name
    }
    expected = {n: t for n, t in state.tensors().items() if n.endswith((LORA_A, LORA_B))}
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in expected.items())
