"""SOUNDNESS, rules 1, 5, 6 and 9: noise, coins and clipping, measured on what sites upload.

Whole rounds are run (charges, outbox, signatures, releases), with noise as real sites draw it.
Every site holds many copies of one row, so the clean sum of a step is known but for the number of
copies that coins let in: an upload is ``-rate / divisor * (n g + noise)`` with g the row's clipped
gradient at the round's base adapter. Along g it shows n, the batch; across g the noise alone.

Each figure below is a standard normal score, and passes 5.0 by chance once in 1.7 million.
"""

import dataclasses
import math
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from planted_bugs import (
    PLANTED,
    clipped_at_twice_the_norm,
    noise_from_a_known_seed,
    noise_times,
)
from tiny_models import CLASSES, locked_spec, take, tiny_base, tiny_rows, word_tokenizer
from worlds import PASSED, campaign_of

from fl_core.adapters.peft_layout import initial_state
from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import noise_plan
from fl_core.models.peft_state import attach, load_state
from fl_core.rounds.adapters import read_state
from fl_core.rounds.documents import Outcome
from fl_core.simulation import Setting, SimulatedSite, simulate
from fl_core.training.batches import columns_of
from fl_core.training.trainee import trainee_of
from fl_core.training.watching import clipped_alone
from fl_core.training.white_box_statistics import chi_square_score
from fl_core.updates.payload import PayloadLimits, decode_tensors

torch.set_num_threads(1)
SITES = ("a", "b", "c")
ROUNDS, COPIES, RATE, NOISE, CLIP_NORM = 16, 60, 0.1, 0.8, 0.1
DIVISOR, LEARNING_RATE = 6.0, 0.05
ALARM = 5.0
# A pair among all pairs of 48 uploads: 1,128 x 2e-10 is under 1e-6.
ALARM_OF_PAIRS = 6.4
# 2 exp(-2 x^2) = 1e-6: Kolmogorov 1933, for the largest distance times the root of the number.
ALARM_OF_DISTANCE = 2.7


@dataclass(frozen=True)
class Uploads:
    """What all uploads show.

    Attributes:
        payloads: Bytes as they lie in the store.
        counts: ``(n,)`` copies of the row that each shows along the gradient, with noise of 0.8.
        noise: ``(n, d)`` what is left across the gradient, in stated standard deviations.
    """

    payloads: list[bytes]
    counts: np.ndarray
    noise: np.ndarray


def uploads(*plants) -> Uploads:
    base = dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())
    campaign = campaign_of(
        SITES,
        max_rounds=ROUNDS,
        task=CLASSES.model_dump(),
        adapter=locked_spec(base, CLASSES, rank=16).model_dump(),
        training={"local_steps": 1, "batch_size": DIVISOR, "learning_rate": LEARNING_RATE},
        privacy={
            "record": {
                "epsilon": 8.0,
                "delta": 1e-5,
                "clip_norm": CLIP_NORM,
                "sampling_rate": RATE,
                "noise_multiplier": NOISE,
            }
        },
    )
    rows = {s: take(tiny_rows(CLASSES, 1, seed=i), [0] * COPIES) for i, s in enumerate(SITES)}
    sites = {s: SimulatedSite(rows=own, gate=PASSED) for s, own in rows.items()}
    store = MemoryStore()
    with ExitStack() as planted:
        for plant in plants:
            planted.enter_context(plant())
        for _ in simulate(Setting(campaign, base, sites, tiny_rows(CLASSES, 4)), store=store):
            pass
    return measured(campaign, base, rows, store)


def measured(campaign, base, rows, store) -> Uploads:
    plan, state = noise_plan(campaign), initial_state(campaign.adapter, campaign.task)
    model = attach(base, campaign.adapter, campaign.task, state)
    trainee, names = trainee_of(model), sorted(model.trainable_parameters())
    payloads, counts, noise = [], [], []
    for number in range(1, ROUNDS + 1):
        for site in SITES:
            alone = clipped_alone(trainee, columns_of(rows[site]), 0, noise=plan)
            gradient = np.concatenate([alone[name].numpy().ravel() for name in names])
            data = store.get(keys.payload(campaign.id, number, site))
            delta = decode_tensors(data, limits=PayloadLimits(max_bytes=1 << 20))
            flat = np.concatenate([delta[name].ravel() for name in names]).astype(np.float64)
            released = -flat * DIVISOR / LEARNING_RATE
            along = float(released @ gradient) / CLIP_NORM**2
            payloads.append(data)
            counts.append(along)
            noise.append((released - along * gradient) / plan.noise_stddev)
        outcome = Outcome.model_validate_json(store.get(keys.outcome(campaign.id, number)))
        load_state(model, read_state(store, campaign, str(outcome.result_hash)))
    return Uploads(payloads, np.array(counts), np.array(noise))


def scores(found: Uploads) -> dict[str, float]:
    """Return every figure as a standard normal score."""
    n, d = found.noise.shape
    # One direction of d is taken out of every upload.
    degrees = n * (d - 1)
    batch_variance = COPIES * RATE * (1 - RATE) + NOISE**2
    spread = np.sum((found.counts - COPIES * RATE) ** 2) / batch_variance
    mean = (found.counts.mean() - COPIES * RATE) / math.sqrt(batch_variance / n)
    return {
        "noise scale": chi_square_score(float(np.sum(found.noise**2)), degrees),
        "noise mean": float(found.noise.sum()) / math.sqrt(degrees),
        "batch mean": float(mean),
        "batch spread": chi_square_score(float(spread), n),
    }


def largest_correlation(noise: np.ndarray) -> float:
    unit = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    alike = unit @ unit.T * math.sqrt(noise.shape[1])
    np.fill_diagonal(alike, 0.0)
    return float(np.abs(alike).max())


def distance_from_normal(noise: np.ndarray) -> float:
    """Return the Kolmogorov distance of all values from the standard normal, times root n."""
    values = np.sort(noise.ravel())
    expected = 0.5 * (1 + torch.erf(torch.from_numpy(values / math.sqrt(2))).numpy())
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))
    return float(distance * math.sqrt(len(values)))


@pytest.fixture(scope="module")
def honest() -> Uploads:
    return uploads()


def test_rule_06_noise_of_uploads_has_the_stated_deviation_and_no_mean(honest):
    found = scores(honest)

    assert abs(found["noise scale"]) < ALARM
    assert abs(found["noise mean"]) < ALARM


def test_rule_06_noise_of_uploads_is_normal(honest):
    assert distance_from_normal(honest.noise) < ALARM_OF_DISTANCE


def test_rule_06_noise_of_no_two_uploads_is_alike_between_rounds_and_sites(honest):
    assert largest_correlation(honest.noise) < ALARM_OF_PAIRS
    assert len(set(honest.payloads)) == ROUNDS * len(SITES)


def test_rule_05_batches_of_uploads_are_coins_and_every_unit_counts_once_at_the_clip_norm(honest):
    found = scores(honest)

    # A unit that counted twice, or above the clip norm, would move the mean; batches of one size
    # would leave the spread of the noise alone.
    assert abs(found["batch mean"]) < ALARM
    assert abs(found["batch spread"]) < ALARM


def test_the_same_figures_find_less_noise_and_shuffled_batches():
    found = scores(uploads(noise_times(0.97), PLANTED["shuffled batches accounted as Poisson"]))

    assert found["noise scale"] < -ALARM
    assert found["batch spread"] < -ALARM


def test_the_same_figures_find_another_clip_norm_and_noise_that_comes_twice():
    found = uploads(clipped_at_twice_the_norm, noise_from_a_known_seed)

    # A unit that counts twice looks like two.
    assert scores(found)["batch mean"] > ALARM
    assert largest_correlation(found.noise) > ALARM_OF_PAIRS
