"""Scores of a classifier from its confusion matrix.

Macro-F1 weighs every class alike, so it shows what accuracy hides when one class is most of the
holdout. A score whose denominator is zero is zero, also for a class that the holdout lacks; this
is scikit-learn's ``f1_score(..., average="macro", labels=all, zero_division=0)``.
"""

import numpy as np
import numpy.typing as npt

from fl_core.updates.records import ClassScores

Counts = npt.NDArray[np.int64]


def confusion_matrix(labels: Counts, predicted: Counts, n_classes: int) -> Counts:
    """Return how often class i was called class j, ``(n_classes, n_classes)``."""
    flat = np.bincount(labels * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.astype(np.int64).reshape(n_classes, n_classes)


def accuracy(confusion: Counts) -> float:
    """Return the share of right answers."""
    return float(np.trace(confusion) / confusion.sum())


def class_scores(confusion: Counts, names: tuple[str, ...]) -> dict[str, ClassScores]:
    """Return precision, recall and F1 of every class by its name."""
    scores = {}
    for number, name in enumerate(names):
        hits = int(confusion[number, number])
        called, present = int(confusion[:, number].sum()), int(confusion[number].sum())
        scores[name] = ClassScores(
            precision=_ratio(hits, called),
            recall=_ratio(hits, present),
            f1=_ratio(2 * hits, called + present),
        )
    return scores


def macro_f1(scores: dict[str, ClassScores]) -> float:
    """Return the unweighted mean of F1 over the classes."""
    return sum(s.f1 for s in scores.values()) / len(scores)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
