"""The loss of every row by itself.

Losses are kept apart per row, because a mean over the batch would divide gradients by a number
that depends on the other rows before they are clipped, and a mean over all tokens of a batch would
couple rows (SOUNDNESS, rule 1). Training and evaluation use the same one.
"""

import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor

from fl_core.data.prompts import IGNORED


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each row, ``(B,)`` float32.

    Args:
        logits: ``(B, n_labels)``, or ``(B, T, vocabulary)`` for a causal LM.
        labels: ``(B,)`` class numbers; or ``(B, T)`` token ids, not shifted, -100 outside the
            answer: the loss of a row is the mean over *its own* answer tokens, 0 without any.
    """
    if labels.dim() == 1:
        return F.cross_entropy(logits.float(), labels, reduction="none")
    predicted, expected = logits[:, :-1].float(), labels[:, 1:]
    per_token = F.cross_entropy(
        predicted.flatten(0, 1), expected.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(expected.shape)
    n_answer = (expected != IGNORED).sum(dim=1)
    return per_token.sum(dim=1) / n_answer.clamp(min=1)
