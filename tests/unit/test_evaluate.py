"""Metrics against hand calculation and scikit-learn, and the evaluation of a model."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from tiny_models import ANSWERS, CLASSES, take, tiny_model, tiny_rows

from fl_core.data.prompts import IGNORED
from fl_core.errors import TrainingError
from fl_core.evaluation.evaluate import evaluate
from fl_core.evaluation.metrics import accuracy, class_scores, confusion_matrix, macro_f1

torch.set_num_threads(1)
ADAPTER, HOLDOUT = "a" * 64, "b" * 64


def test_scores_equal_a_hand_calculation():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])

    confusion = confusion_matrix(labels, predicted, 3)
    scores = class_scores(confusion, ("x", "y", "z"))

    # x: 2 hits, called 4 times, present 3; y: 1 hit of 2 and 2; z: never called.
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert accuracy(confusion) == 0.5
    assert (scores["x"].precision, scores["x"].recall) == (0.5, pytest.approx(2 / 3))
    assert scores["x"].f1 == pytest.approx(4 / 7)
    assert (scores["y"].precision, scores["y"].recall, scores["y"].f1) == (0.5, 0.5, 0.5)
    assert (scores["z"].precision, scores["z"].recall, scores["z"].f1) == (0.0, 0.0, 0.0)
    assert macro_f1(scores) == pytest.approx((4 / 7 + 0.5) / 3)


@pytest.mark.parametrize("n_classes", [2, 5, 9])
def test_scores_equal_scikit_learn(n_classes):
    rng = np.random.default_rng(n_classes)
    # The last class never occurs, as it may in a small holdout.
    labels, predicted = rng.integers(0, n_classes - 1, (2, 200))
    names = tuple(f"class {i}" for i in range(n_classes))

    confusion = confusion_matrix(labels, predicted, n_classes)
    scores = class_scores(confusion, names)

    every = {"labels": range(n_classes), "zero_division": 0}
    expected = precision_recall_fscore_support(labels, predicted, **every)
    found = np.array([[s.precision, s.recall, s.f1] for s in scores.values()]).T
    np.testing.assert_allclose(found, expected[:3])
    assert accuracy(confusion) == pytest.approx(accuracy_score(labels, predicted))
    assert macro_f1(scores) == pytest.approx(f1_score(labels, predicted, average="macro", **every))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_classification_is_scored_on_all_rows_whatever_the_batch(batch):
    model, rows = tiny_model(CLASSES), tiny_rows(CLASSES, 20)
    with torch.inference_mode():
        logits = model(torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask))
    chances = torch.softmax(logits.double(), dim=1).numpy()

    found = evaluate(
        model, rows, CLASSES, adapter_sha256=ADAPTER, holdout_sha256=HOLDOUT, batch=batch
    )

    assert found.examples == 20
    assert found.accuracy == pytest.approx(np.mean(chances.argmax(axis=1) == rows.labels))
    assert found.loss == pytest.approx(
        -np.log(chances[np.arange(20), rows.labels]).mean(), rel=1e-5
    )
    assert list(found.classes) == ["a", "b", "c"]
    assert (found.adapter_sha256, found.holdout_sha256) == (ADAPTER, HOLDOUT)


def test_causal_model_is_scored_on_answer_tokens():
    model, rows = tiny_model(ANSWERS), tiny_rows(ANSWERS, 6)
    with torch.inference_mode():
        logits = model(torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask))
    right, losses = [], []
    for i in range(6):
        row = []
        for t in range(1, rows.labels.shape[1]):
            if rows.labels[i, t] != IGNORED:
                chances = torch.log_softmax(logits[i, t - 1].double(), dim=0)
                row.append(-float(chances[rows.labels[i, t]]))
                right.append(int(chances.argmax()) == rows.labels[i, t])
        losses.append(np.mean(row))

    found = evaluate(model, rows, ANSWERS, adapter_sha256=ADAPTER, holdout_sha256=HOLDOUT, batch=4)

    assert found.accuracy == pytest.approx(np.mean(right))
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.macro_f1 is None
    assert found.classes == {}


def test_empty_holdout_is_refused():
    rows = take(tiny_rows(CLASSES, 2), slice(0, 0))

    with pytest.raises(TrainingError, match="no usable rows"):
        evaluate(tiny_model(CLASSES), rows, CLASSES, adapter_sha256=ADAPTER, holdout_sha256=HOLDOUT)


def test_adapter_that_diverged_has_no_loss_and_is_no_error():
    model = tiny_model(CLASSES)
    with torch.no_grad():
        model.head.weight.fill_(3e38)

    found = evaluate(
        model, tiny_rows(CLASSES, 4), CLASSES, adapter_sha256=ADAPTER, holdout_sha256=HOLDOUT
    )

    assert found.loss is None
    assert found.examples == 4
