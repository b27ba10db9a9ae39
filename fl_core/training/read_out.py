"""What noise did to a round, for the site's own people.

The figures compare the noised gradient sums with the clean ones, so they are computed from private
rows without noise: they are never logged and never leave the site (SOUNDNESS, rule 18).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fl_core.training.private_training import ClippedSum, Gradients
from fl_core.updates.work import ReadOut


class NoiseWatch:
    """Adds up clean and noised sums over the steps of one round.

    Args:
        divisor: The public batch size that noised gradients were divided by.
    """

    def __init__(self, divisor: float) -> None:
        self._divisor = divisor
        self._clean: Gradients = {}
        self._noised: Gradients = {}
        self._n_units = 0
        self._n_whole = 0

    def add(self, step: ClippedSum, noised: Mapping[str, Tensor]) -> None:
        """Take in one step; both are by tensor name."""
        for name, clean in step.gradients.items():
            if name in self._clean:
                self._clean[name] += clean
                self._noised[name] += noised[name]
            else:
                self._clean[name], self._noised[name] = clean.clone(), noised[name].double()
        self._n_units += step.n_units
        self._n_whole += step.n_whole

    def read_out(self, round_number: int) -> ReadOut:
        """Return the figures of the round."""
        clean, noised = _norm(self._clean), self._divisor * _norm(self._noised)
        product = self._divisor * sum(
            float(torch.sum(self._clean[name] * self._noised[name])) for name in self._clean
        )
        lengths = clean * noised
        share = 1 - self._n_whole / self._n_units if self._n_units else None
        return ReadOut(
            round=round_number,
            cosine=max(-1.0, min(1.0, product / lengths)) if lengths > 0 else 0.0,
            norm_ratio=noised / clean if clean > 0 else None,
            clipped_share=share,
        )


def _norm(tensors: Gradients) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))
