"""Every adapter rule through whole simulated campaigns: what a round moves, and what stays.

The rounds are the product's own, on a tiny random model, so that the shapes of an update, the
reload check of the site and the adapter files of every release are those of a real run.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    ANSWERS,
    CLASSES,
    locked_spec,
    noise_plan,
    random_state,
    tiny_base,
    tiny_rows,
    train_locally,
    word_tokenizer,
)
from worlds import PASSED, campaign_of

from fl_core.adapters.algebra import mean_of_products, product
from fl_core.adapters.pair import HEAD, LORA_A, LoraState
from fl_core.adapters.peft_layout import initial_state, tensor_shapes
from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import assemble
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.specs import TrainingSpec
from fl_core.errors import IncompatibleParts
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import attach, open_for_round, read_tensors
from fl_core.privacy.randomness import SeededStream
from fl_core.rounds.adapters import read_state
from fl_core.rounds.documents import Outcome
from fl_core.simulation import Setting, SimulatedSite, simulate
from fl_core.updates.payload import PayloadLimits, decode_tensors

torch.set_num_threads(1)
SITES = ("a", "b", "c")
# What the rounds 1 to 4 train of a pair: B, A, both or neither.
TRAINED = {
    "lora": ("AB", "AB", "AB", "AB"),
    "ffa_lora": ("B", "B", "B", "B"),
    "rolora": ("B", "A", "B", "A"),
    "head": ("", "", "", ""),
}
PRIVATE = {
    "record": {
        "epsilon": 8.0,
        "delta": 1e-5,
        "clip_norm": 1.0,
        "sampling_rate": 0.5,
        "noise_multiplier": 3.0,
    }
}
NONE = {"none": {"reason": "random numbers, nothing to protect"}}


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())


def campaign(base: LoadedBase, rule: str, privacy: dict, *, rounds: int) -> Campaign:
    return campaign_of(
        SITES,
        task=CLASSES,
        adapter=locked_spec(base, CLASSES, rule=rule),
        # Three steps without noise: head and B start at zero, so A moves from the third on.
        training={"local_steps": 3, "batch_size": 8, "learning_rate": 0.5, "micro_batch": 8},
        privacy=privacy,
        max_rounds=rounds,
    )


def run(base: LoadedBase, what: Campaign, *, seed: int | None = 1) -> MemoryStore:
    store = MemoryStore()
    sites = {
        name: SimulatedSite(rows=tiny_rows(CLASSES, 12, seed=n), gate=PASSED)
        for n, name in enumerate(what.sites)
    }
    holdout = tiny_rows(CLASSES, 8, seed=9)
    statuses = list(simulate(Setting(what, base, sites, holdout, seed=seed), store=store))
    assert [s.outcome and s.outcome.status for s in statuses] == ["released"] * what.max_rounds
    return store


def upload(store: MemoryStore, what: Campaign, round_number: int, site: str) -> dict:
    data = store.get(keys.payload(what.id, round_number, site))
    return decode_tensors(data, limits=PayloadLimits(max_bytes=1 << 20))


def adapters(store: MemoryStore, what: Campaign) -> list[LoraState]:
    """The adapter before round 1, and after every round."""
    status = [store.get(keys.outcome(what.id, number)) for number in range(1, what.max_rounds + 1)]
    released = [Outcome.model_validate_json(text).result_hash for text in status]
    first = initial_state(what.adapter, what.task)
    return [first, *(read_state(store, what, str(sha256)) for sha256 in released)]


def factors(name: str) -> str:
    return "A" if name.endswith(LORA_A) else "" if name.startswith(HEAD) else "B"


@pytest.mark.parametrize("privacy", [PRIVATE, NONE], ids=["private", "plain"])
@pytest.mark.parametrize("rule", TRAINED)
def test_every_round_sends_and_moves_exactly_what_its_rule_trains(base, rule, privacy):
    what = campaign(base, rule, privacy, rounds=4)

    store = run(base, what)

    states = adapters(store, what)
    for number, trained in enumerate(TRAINED[rule], start=1):
        expected = {
            name
            for name in tensor_shapes(what.adapter, what.task)
            if factors(name) in trained  # the empty text is in every text: the head is trained
        }
        before, after = states[number - 1].tensors(), states[number].tensors()
        for site in SITES:
            assert upload(store, what, number, site).keys() == expected
        for name, tensor in after.items():
            assert np.array_equal(tensor, before[name]) == (name not in expected), (number, name)


@pytest.mark.parametrize("rule", ["ffa_lora", "rolora", "head"])
def test_mean_of_updates_is_the_mean_of_the_products_where_one_factor_is_frozen(base, rule):
    what = campaign(base, rule, NONE, rounds=4)

    store = run(base, what)

    states = adapters(store, what)
    for number in range(1, what.max_rounds + 1):
        before = states[number - 1]
        at_sites = [before.plus(upload(store, what, number, site)) for site in SITES]
        for module, pair in states[number].pairs.items():
            mean = mean_of_products([state.pairs[module] for state in at_sites], [1.0, 1.0, 1.0])
            np.testing.assert_allclose(product(pair), mean, rtol=1e-4, atol=1e-7)


def test_head_rule_leaves_every_pair_without_effect(base):
    what = campaign(base, "head", PRIVATE, rounds=2)

    states = adapters(run(base, what), what)

    for state in states:
        assert not any(product(pair).any() for pair in state.pairs.values())
    assert states[-1].head["weight"].any()


def test_head_rule_without_a_head_is_refused(base):
    what = campaign(base, "head", PRIVATE, rounds=2)
    task = ANSWERS
    causal = what.model_copy(
        update={"task": task, "adapter": locked_spec(tiny_base(task), task, rule="head")}
    )

    with pytest.raises(IncompatibleParts, match=r"adapter\.rule 'head' trains the head alone"):
        assemble(causal)


@pytest.mark.parametrize(
    ("task", "rule", "missing"),
    [(CLASSES, "head", "pairs"), (ANSWERS, "lora", "head")],
    ids=["head-only", "answers"],
)
def test_bounds_for_a_group_that_is_not_trained_are_refused(base, task, rule, missing):
    bounds = {"record": PRIVATE["record"] | {"clip_norm": {"adapter": 0.5, "head": 1.0}}}
    what = campaign(base, rule, bounds, rounds=2)
    adapter = locked_spec(tiny_base(task), task, rule=rule)

    with pytest.raises(IncompatibleParts, match=f"no {missing} are trained"):
        assemble(what.model_copy(update={"task": task, "adapter": adapter}))


@given(rule=st.sampled_from(sorted(TRAINED)), round_number=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_what_a_round_freezes_keeps_its_bits_through_private_training(rule, round_number):
    spec = locked_spec(tiny_base(CLASSES), CLASSES, rule=rule)
    model = attach(tiny_base(CLASSES), spec, CLASSES, random_state(spec, CLASSES))
    open_for_round(model, round_number)
    before = read_tensors(model)

    delta = train_locally(
        model,
        tiny_rows(CLASSES, 5, seed=round_number),
        training=TrainingSpec(local_steps=2, batch_size=4, learning_rate=0.5, micro_batch=4),
        divisor=4.0,
        noise=noise_plan(steps=2),
        stream=SeededStream(round_number),
    )

    after = read_tensors(model)
    assert set(delta) == set(tensor_shapes(spec, CLASSES, round_number=round_number))
    for name in before:
        assert np.array_equal(before[name], after[name]) == (name not in delta)
