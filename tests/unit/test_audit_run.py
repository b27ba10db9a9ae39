"""Canaries, guesses and their bounds: what an audit is made of, on tiny models."""

import numpy as np
import pytest
import torch
from tiny_models import ANSWERS, CLASSES, noise_plan, tiny_model, tiny_rows, word_tokenizer

from fl_core.adapters.pair import HEAD
from fl_core.campaign.guarantees import GroupBounds
from fl_core.errors import TrainingError
from fl_core.privacy.audit_documents import CanaryAudit
from fl_core.privacy.randomness import SecureStream, SeededStream
from fl_core.training.audit_run import (
    Claim,
    audit_canaries,
    canaries_for,
    guess_counts,
    membership,
)
from fl_core.training.batches import columns_of
from fl_core.training.canaries import (
    aim,
    pushing,
    suspicion,
    synthetic_rows,
    text_canaries,
    whole_numbers,
    with_gradient_canaries,
    words_of,
)
from fl_core.training.trainee import trainee_of
from fl_core.training.watching import clipped_alone

torch.set_num_threads(1)
CLAIM = Claim(epsilon=1.0, delta=0.0, confidence=0.95)


def aimed(n: int, **changes):
    model = tiny_model(CLASSES, **changes)
    trainee = trainee_of(model)
    return trainee, aim(trainee, n, noise=noise_plan(), stream=SecureStream())


def test_every_canary_has_a_trained_weight_of_its_own():
    _, aims = aimed(400)

    places = set(
        zip(*(t.tolist() for t in (aims.layer_of, aims.outputs, aims.inputs)), strict=True)
    )

    assert len(places) == 400
    for layer, output, column in places:
        height, width = aims.layers[layer].weight.shape
        assert output < height
        assert column < width


def test_frozen_factors_get_no_canary():
    _, aims = aimed(100, rule="ffa_lora")

    assert not [name for name in aims.names if name.endswith("lora_A")]


def test_more_canaries_than_weights_are_refused():
    with pytest.raises(TrainingError, match="ask for fewer"):
        aimed(10**6)


@pytest.mark.parametrize("canary", [0, 7, 19])
def test_clipped_gradient_of_a_canary_is_the_clip_norm_in_its_own_coordinate(canary):
    trainee, aims = aimed(20)
    plan, rows = noise_plan(clip_norm=0.3), columns_of(tiny_rows(CLASSES, 3))
    columns = with_gradient_canaries(rows, np.array([canary]))

    clipped = clipped_alone(pushing(trainee, aims), columns, 3, noise=plan)

    own = aims.read(clipped)
    # A bias takes 1 part of 30 or more: sqrt(1 - 1/30^2) of the norm is left for the weight.
    assert 0.3 * 0.9994 < float(own[canary]) <= 0.3
    assert float(own.abs().sum() - own[canary].abs()) < 1e-12


def test_rows_beside_canaries_keep_their_gradients():
    trainee, aims = aimed(20)
    plan, rows = noise_plan(), columns_of(tiny_rows(CLASSES, 4))
    columns = with_gradient_canaries(rows, np.arange(5))

    for number in range(4):
        plain = clipped_alone(trainee, rows, number, noise=plan)
        beside = clipped_alone(pushing(trainee, aims), columns, number, noise=plan)

        assert all(torch.equal(plain[name], beside[name]) for name in plain)


def test_bound_of_a_canary_is_that_of_its_group():
    _, aims = aimed(300)
    plan = noise_plan().model_copy(update={"group_bounds": GroupBounds(adapter=0.1, head=0.4)})

    bounds = aims.bounds(plan)

    is_head = torch.tensor([aims.names[i].startswith(HEAD) for i in aims.layer_of.tolist()])
    assert is_head.any()
    assert set(bounds[is_head].tolist()) == {0.4}
    assert set(bounds[~is_head].tolist()) == {0.1}


def test_suspicion_is_the_log_of_the_likelihood_ratio():
    _, aims = aimed(3)
    plan = noise_plan(clip_norm=0.3, multiplier=0.5, rate=0.2)
    read = torch.tensor([0.3, 0.0, -0.15], dtype=torch.float64)

    found = suspicion(read, aims, plan)

    # Noise has deviation .15, so a = 2 and x = 2, 0, -1: .8 + .2 exp(2 x - 2).
    expected = np.log(0.8 + 0.2 * np.exp([2.0, -2.0, -4.0]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_all_right_guesses_reach_the_ceiling():
    coins = np.arange(1000) % 2 == 0
    scores = np.where(coins, 1.0, -1.0) + np.arange(1000) * 1e-6

    found = audit_canaries(coins, scores, kind="gradient", claim=CLAIM)

    assert found.correct == found.guesses
    assert found.lower_bound == found.ceiling
    # (e^eps / (1 + e^eps))^100 = .025 at epsilon 3.278, by hand: q = .025^(1/100) = .96379.
    assert found.lower_bound == pytest.approx(3.281, abs=0.01)


def test_scores_that_know_nothing_bound_nothing():
    stream = SeededStream(3)
    coins, scores = stream.coins(1000, 0.5), stream.normal((1000,)).astype(np.float64)

    found = audit_canaries(coins, scores, kind="text", claim=CLAIM)

    assert found.lower_bound < 0.5
    assert found.ceiling > 3


@pytest.mark.parametrize(
    ("epsilon", "counts"),
    [
        # q^r <= .025 with q = e^eps / (1 + e^eps): 12 guesses refute 1, 203 refute 4; times 1.2.
        (1.0, (14, 100)),
        (4.0, (100, 244)),
        # Nothing short of all canaries comes near 8.
        (8.0, (100, 1000)),
    ],
)
def test_guesses_are_as_many_as_the_claim_needs_and_a_tenth(epsilon, counts):
    assert guess_counts(1000, Claim(epsilon, 0.0, 0.95)) == counts


def test_a_higher_claim_gets_more_canaries():
    numbers = [canaries_for(Claim(epsilon, 1e-5, 0.95)) for epsilon in (1.0, 4.0, 6.0)]

    assert numbers[0] == 1000
    assert numbers == sorted(numbers)
    assert numbers[-1] > 1000


def test_auc_and_its_interval_are_those_of_the_paper():
    # Every member above every other: the AUC is 1 and has no spread.
    coins = np.arange(60) < 30

    found = membership(coins, coins.astype(float), confidence=0.95)

    assert found is not None
    assert (found.auc, found.low, found.high) == (1.0, 1.0, 1.0)


def test_auc_of_equal_scores_is_a_half():
    coins = np.arange(200) % 2 == 0

    found = membership(coins, np.zeros(200), confidence=0.95)

    # Hanley and McNeil 1982, (1) with A = 1/2: Q1 = 1/3, Q2 = 1/3, so the variance is
    # (1/4 + 2 x 99 / 12) / 10000 = .001675, and 1.96 deviations are .0802.
    assert found is not None
    assert found.auc == 0.5
    assert found.high - 0.5 == pytest.approx(0.0802, abs=1e-4)


def test_too_few_rows_have_no_auc():
    coins = np.arange(30) < 10

    assert membership(coins, np.zeros(30), confidence=0.95) is None


def test_whole_numbers_are_even_over_their_range():
    found = whole_numbers(SeededStream(1), 6000, below=6)

    counts = np.bincount(found, minlength=6)
    # 1000 each with deviation 29; 5.5 of them are passed once in 26 million.
    assert np.abs(counts - 1000).max() < 160


@pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])
def test_made_up_rows_have_the_columns_of_the_task(task):
    words = words_of(word_tokenizer())

    for rows in (
        text_canaries(task, words, 30, SeededStream(1)),
        synthetic_rows(task, words, 30, SeededStream(2)),
    ):
        assert len(rows) == 30
        assert list(rows.frame.columns) == [task.text, task.target]
        if task.labels:
            assert set(rows.frame[task.target]) <= set(task.labels)


def test_an_audit_says_no_more_than_it_guessed():
    with pytest.raises(ValueError, match="canaries"):
        CanaryAudit(kind="text", canaries=10, guesses=20, correct=5, lower_bound=0.0, ceiling=1.0)
