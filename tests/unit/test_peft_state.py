"""Attaching, loading and reading adapters, without touching the base model."""

import numpy as np
import pytest
import torch
from tiny_models import ANSWERS, CLASSES, locked_spec, random_state, tiny_base, tiny_rows

from fl_core.adapters.pair import LORA_A, LoraPair, LoraState
from fl_core.errors import AdapterMismatch
from fl_core.models.peft_state import attach, load_state, open_for_round, read_state

torch.set_num_threads(1)
TASKS = pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])


def inputs(task, n=4):
    rows = tiny_rows(task, n)
    return torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask)


@TASKS
def test_state_reads_back_as_it_was_loaded(task):
    base = tiny_base(task)
    spec = locked_spec(base, task)
    model = attach(base, spec, task, random_state(spec, task, seed=1))
    state = random_state(spec, task, seed=2)

    load_state(model, state)

    back = read_state(model)
    assert back.tensors().keys() == state.tensors().keys()
    assert all(np.array_equal(back.tensors()[n], t) for n, t in state.tensors().items())


@TASKS
def test_base_stays_as_it_was_and_attachments_do_not_meet(task):
    base = tiny_base(task)
    spec = locked_spec(base, task)
    names = [name for name, _ in base.model.named_modules()]
    ids, mask = inputs(task)
    plain = base.model(input_ids=ids, attention_mask=mask)[0]
    first = attach(base, spec, task, random_state(spec, task, seed=1))
    before = first(ids, mask)

    second = attach(base, spec, task, random_state(spec, task, seed=2))

    assert torch.equal(first(ids, mask), before)
    assert not torch.equal(second(ids, mask), before)
    assert torch.equal(base.model(input_ids=ids, attention_mask=mask)[0], plain)
    assert [name for name, _ in base.model.named_modules()] == names


def test_attachments_share_the_weights_of_the_base():
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES)

    model = attach(base, spec, CLASSES, random_state(spec, CLASSES))

    shared = {p.data_ptr() for p in base.model.parameters()}
    own = [n for n, p in model.named_parameters() if p.data_ptr() not in shared]
    assert len(own) == len(model.adapter_parameters())


def test_adapter_computes_base_plus_scaled_product():
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES)
    state = random_state(spec, CLASSES)
    name = "encoder.layer.0.attention.self.query"
    model = attach(base, spec, CLASSES, state)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))

    found = model.backbone.get_submodule(name)(x)

    pair, plain = state.pairs[name], base.model.get_submodule(name)
    change = 6.0 / 3 * pair.b @ pair.a  # alpha / rank
    expected = x @ (plain.weight + torch.from_numpy(change)).T + plain.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rule", "n_frozen"), [("lora", 0), ("ffa_lora", 4)])
def test_only_the_adapter_asks_for_gradients(rule, n_frozen):
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES, rule=rule)

    model = attach(base, spec, CLASSES, random_state(spec, CLASSES))

    asking = {id(p) for p in model.parameters() if p.requires_grad}
    assert asking == {id(p) for p in model.trainable_parameters().values()}
    frozen = model.adapter_parameters().keys() - model.trainable_parameters().keys()
    assert len(frozen) == n_frozen
    assert all(name.endswith(LORA_A) for name in frozen)


def spoiled(state: LoraState, how: str) -> LoraState:
    pairs, name = dict(state.pairs), min(state.pairs)
    pair = pairs[name]
    if how == "missing":
        del pairs[name]
    elif how == "extra":
        pairs["encoder.layer.9.query"] = pair
    elif how == "shape":
        pairs[name] = LoraPair(a=pair.a[:, :-1], b=pair.b, scaling=pair.scaling)
    elif how == "scaling":
        pairs = {n: LoraPair(a=p.a, b=p.b, scaling=1.0) for n, p in pairs.items()}
    elif how == "no-head":
        return LoraState(pairs=pairs)
    return LoraState(pairs=pairs, head=state.head)


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "scaling", "no-head"])
def test_state_that_does_not_cover_every_target_is_refused(how):
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES)
    state = random_state(spec, CLASSES)
    model = attach(base, spec, CLASSES, state)

    with pytest.raises(AdapterMismatch):
        load_state(model, spoiled(state, how))

    assert all(
        np.array_equal(read_state(model).tensors()[n], t) for n, t in state.tensors().items()
    )


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param({"encoder.layer.7.attention.self.query": (32, 32)}, id="absent"),
        pytest.param({"encoder.layer.0.attention.self.query": (32, 16)}, id="other-shape"),
        pytest.param({"embeddings.LayerNorm": (32, 32)}, id="not-linear"),
    ],
)
def test_campaign_locked_with_another_base_is_refused(modules):
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES).model_copy(update={"modules": modules})

    with pytest.raises(AdapterMismatch, match="lock the campaign again"):
        attach(base, spec, CLASSES, random_state(spec, CLASSES))


def test_padding_does_not_reach_the_logits():
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES)
    model = attach(base, spec, CLASSES, random_state(spec, CLASSES))
    ids, mask = inputs(CLASSES)
    other = torch.where(mask == 1, ids, 3)

    torch.testing.assert_close(model(other, mask), model(ids, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "odd", "even"),
    [
        ("lora", {"A", "B", "head"}, {"A", "B", "head"}),
        ("ffa_lora", {"B", "head"}, {"B", "head"}),
        ("rolora", {"B", "head"}, {"A", "head"}),
        ("head", {"head"}, {"head"}),
    ],
)
def test_a_round_opens_what_its_rule_trains_and_closes_the_rest(rule, odd, even):
    base = tiny_base(CLASSES)
    spec = locked_spec(base, CLASSES, rule=rule)
    model = attach(base, spec, CLASSES, random_state(spec, CLASSES))
    kinds = {True: "head", False: None}

    for number, expected in ((1, odd), (2, even), (3, odd), (8, even)):
        open_for_round(model, number)

        names = model.trainable_parameters()
        found = {kinds[name.startswith("head.")] or name[-1] for name in names}
        assert found == expected
        asked = [n for n, p in model.named_parameters() if p.requires_grad]
        assert len(asked) == len(names), "nothing of the base model asks for a gradient"
