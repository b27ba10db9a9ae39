"""One adapter on the coordinator's public holdout.

Only declared public rows are evaluated (SOUNDNESS, rule 22), so the result is no release of
anybody's data and needs no charge.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import IGNORED, EncodedRows
from fl_core.errors import TrainingError
from fl_core.evaluation.metrics import accuracy, class_scores, confusion_matrix, macro_f1
from fl_core.models.losses import row_losses
from fl_core.models.peft_state import AdaptedModel
from fl_core.updates.records import Evaluation


@dataclass(frozen=True, slots=True)
class _Answers:
    """Losses of all rows, and true and predicted labels (of answer tokens for a causal LM)."""

    losses: torch.Tensor
    labels: torch.Tensor
    predicted: torch.Tensor


def evaluate(  # noqa: PLR0913  two hashes are for the record only
    model: AdaptedModel,
    rows: EncodedRows,
    task: TaskSpec,
    *,
    adapter_sha256: str,
    holdout_sha256: str,
    batch: int = 64,
) -> Evaluation:
    """Score a model on public rows.

    Args:
        model: With the adapter loaded.
        rows: The encoded holdout.
        task: Classification is scored per class, a causal LM by answer tokens.
        adapter_sha256: Content hash of the adapter, for the record.
        holdout_sha256: Content hash of the holdout, for the record.
        batch: Rows per forward pass; it changes no figure beyond rounding.

    Raises:
        TrainingError: The holdout is empty.
    """
    if len(rows) == 0:
        raise TrainingError("the holdout has no usable rows; check its file and its columns")
    answers = _answers(model, rows, batch)
    mean = float(answers.losses.double().mean())
    # A result and no error: one site can cause it, and later rounds are still to be logged.
    loss = mean if math.isfinite(mean) else None
    if task.kind == "causal_lm":
        right = (answers.labels == answers.predicted).double().mean()
        return Evaluation(
            adapter_sha256=adapter_sha256,
            holdout_sha256=holdout_sha256,
            examples=len(rows),
            loss=loss,
            accuracy=float(right),
        )
    confusion = confusion_matrix(
        answers.labels.numpy(), answers.predicted.numpy(), len(task.labels)
    )
    scores = class_scores(confusion, task.labels)
    return Evaluation(
        adapter_sha256=adapter_sha256,
        holdout_sha256=holdout_sha256,
        examples=len(rows),
        loss=loss,
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(scores),
        classes=scores,
    )


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is Any to mypy here
def _answers(model: AdaptedModel, rows: EncodedRows, batch: int) -> _Answers:
    losses, labels, predicted = [], [], []
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        truth = torch.from_numpy(np.ascontiguousarray(rows.labels[part]))
        logits = model(
            torch.from_numpy(np.ascontiguousarray(rows.input_ids[part])),
            torch.from_numpy(np.ascontiguousarray(rows.attention_mask[part])),
        )
        losses.append(row_losses(logits, truth))
        called = logits.argmax(dim=-1)
        if truth.dim() > 1:
            # The token at place t is predicted at place t - 1.
            is_answer = truth[:, 1:] != IGNORED
            truth, called = truth[:, 1:][is_answer], called[:, :-1][is_answer]
        labels.append(truth)
        predicted.append(called)
    return _Answers(
        losses=torch.cat(losses), labels=torch.cat(labels), predicted=torch.cat(predicted)
    )
