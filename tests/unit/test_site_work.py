"""A site's work with a real model: what it hands back, and what it takes up from the last round."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fl_core.adapters.peft_layout import initial_state, to_files
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.assembly import assemble
from fl_core.campaign.campaign import Campaign
from fl_core.errors import FedloomError
from fl_core.models.peft_state import attach
from fl_core.privacy.randomness import SeededStream
from fl_core.training.moving_clip import ClipState
from fl_core.training.site_work import ModelWork
from fl_core.updates.work import Exchange
from tests.tiny_models import CLASSES, locked_spec, tiny_base, tiny_rows, word_tokenizer
from tests.worlds import NO_PRIVACY, PASSED, campaign_of

torch.set_num_threads(1)
BASE = dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())
RECORD = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "sampling_rate": 0.5,
    "noise_multiplier": 1.5,
}
MOVING = {"record": RECORD | {"adaptive_clip": {"count_stddev": 2.0, "learning_rate": 0.2}}}
FIXED = {"record": RECORD}
GROUPS = {"record": RECORD | {"clip_norm": {"adapter": 0.1, "head": 0.5}}}


def work_of(privacy: dict, *, rule: str = "lora", seed: int = 1) -> ModelWork:
    campaign = campaign_of(
        ("a", "b"),
        task=CLASSES,
        adapter=locked_spec(BASE, CLASSES, rule=rule),
        training={"local_steps": 2, "batch_size": 8, "learning_rate": 0.1, "micro_batch": 8},
        privacy=privacy,
    )
    return ModelWork(
        campaign=campaign,
        site="a",
        noise=assemble(campaign).noise,
        base=BASE,
        model=attach(BASE, campaign.adapter, CLASSES, initial_state(campaign.adapter, CLASSES)),
        verdict=lambda: PASSED,
        rows=lambda: tiny_rows(CLASSES, 10),
        stream=lambda: SeededStream(seed),
    )


def base_files(campaign: Campaign) -> dict[str, bytes]:
    state = initial_state(campaign.adapter, CLASSES)
    return to_files(state, spec=campaign.adapter, task=CLASSES, base_name="tiny-base")


def trained(work: ModelWork, *, state: bytes | None = None, round_number: int = 1):
    return work.train(Exchange(round_number, base_files(work.campaign), state))


@pytest.mark.parametrize("privacy", [FIXED, GROUPS, NO_PRIVACY], ids=["fixed", "groups", "none"])
def test_only_a_moving_clip_norm_leaves_state(privacy):
    assert trained(work_of(privacy)).state is None


def test_state_is_the_round_and_its_clip_norm_and_nothing_else():
    state = trained(work_of(MOVING), round_number=3).state

    found = from_bytes(ClipState, state, what="state")
    assert found.round == 3
    assert found.clip_norm != 0.5
    assert set(ClipState.model_fields) == {"round", "clip_norm"}


def test_training_goes_on_at_the_clip_norm_that_the_last_round_left():
    work, start = work_of(MOVING), ClipState(round=1, clip_norm=64.0)

    after = trained(work, state=to_bytes(start), round_number=2).state

    # Each of two steps moves C by at most exp(.2 * .5) where the share lies in [0, 1].
    moved = math.log(from_bytes(ClipState, after, what="state").clip_norm / 64.0)
    assert 0 < abs(moved) <= 2 * 0.2 * 0.5 + 1e-12


def test_state_that_is_no_clip_norm_ends_the_training_before_a_row_is_read():
    def rows():
        raise AssertionError("rows were read")

    work = dataclasses.replace(work_of(MOVING), rows=rows)

    with pytest.raises(FedloomError, match="clip norm that the last round left"):
        trained(work, state=b'{"clip_norm": -1, "round": 1}', round_number=2)


@pytest.mark.parametrize("privacy", [FIXED, GROUPS, MOVING], ids=["fixed", "groups", "moving"])
def test_private_training_leaves_a_read_out(privacy):
    read_out = trained(work_of(privacy), round_number=4).read_out

    assert read_out.round == 4
    assert -1 <= read_out.cosine <= 1
    # Noise of 1.5 C per coordinate over hundreds of them buries ten clipped gradients.
    assert read_out.norm_ratio > 1
    assert 0 <= read_out.clipped_share <= 1


def test_training_without_noise_leaves_no_read_out():
    assert trained(work_of(NO_PRIVACY)).read_out is None


def test_even_rounds_of_rolora_train_a_and_odd_ones_b():
    work = work_of(FIXED, rule="rolora")

    odd, even = (trained(work, round_number=number).delta for number in (1, 2))

    assert not any(name.endswith("lora_A") for name in odd)
    assert not any(name.endswith("lora_B") for name in even)
    assert {n for n in odd if n.startswith("head.")} == {n for n in even if n.startswith("head.")}
    assert all(np.any(tensor) for tensor in even.values())
