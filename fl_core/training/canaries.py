"""Units that were planted to be found: an audit's canaries.

A gradient canary is the strongest unit that the product's own training lets in: its loss pushes one
weight of one trained layer, so its clipped gradient is the whole clip norm in a coordinate of its
own, and whoever sees the noised steps reads it there. It passes through the same capture, clipping,
coins and noise as every row. A text canary is a synthetic text with a label that has nothing to do
with it: a model that is sure of that label has learnt this text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fl_core.campaign.specs import TaskSpec
from fl_core.data.rows import Rows
from fl_core.data.synthetic import text_rows
from fl_core.errors import TrainingError
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import Columns
from fl_core.training.trainee import Trainee
from fl_core.training.watching import bounds_of

CANARY = "canary"
_ROW, _EMPTY = -1, -2
# Far above the clip norm, so that clipping that is left out shows, and a bias adds nothing.
_PUSH = 100.0
_LEAST_PUSH = 30.0
_BITS = 32
_WORDS_PER_TEXT = 8
_ANSWER_WORDS = 3
_SHORTEST_WORD = 4
_FEWEST_WORDS = 200

Numbers = npt.NDArray[np.int64]


class Vocabulary(Protocol):
    """What is used of a tokenizer to make up texts."""

    def get_vocab(self) -> dict[str, int]:
        """Return the number of every token by its text."""


@dataclass(frozen=True, slots=True)
class Aims:
    """Where each gradient canary pushes in one round.

    Attributes:
        names: Trained weights that can be pushed, sorted.
        layers: Their modules.
        layer_of: ``(m,)`` index into ``names`` of each canary.
        outputs: ``(m,)`` row of the weight.
        inputs: ``(m,)`` column of the weight.
        strength: Gradient norm of a canary before clipping.
    """

    names: tuple[str, ...]
    layers: tuple[nn.Linear, ...]
    layer_of: Tensor
    outputs: Tensor
    inputs: Tensor
    strength: float

    def read(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the canaries' own coordinates of named tensors, ``(m,)`` float64."""
        found = torch.zeros(len(self.layer_of), dtype=torch.float64)
        for number, name in enumerate(self.names):
            mine = self.layer_of == number
            found[mine] = gradients[name][self.outputs[mine], self.inputs[mine]].double()
        return found

    def bounds(self, noise: NoisePlan) -> Tensor:
        """Return the clip norm that holds for each canary, ``(m,)`` float64."""
        of_name = {
            name: bound for bound, group in bounds_of(list(self.names), noise) for name in group
        }
        return torch.tensor([of_name[name] for name in self.names], dtype=torch.float64)[
            self.layer_of
        ]


def aim(trainee: Trainee, n_canaries: int, *, noise: NoisePlan, stream: NoiseStream) -> Aims:
    """Give every canary a trained weight of its own, at random.

    Raises:
        TrainingError: There are fewer weights than canaries.
    """
    by_id = {id(parameter): name for name, parameter in trainee.parameters.items()}
    found = {
        by_id[id(module.weight)]: module
        for module in trainee.module.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in by_id
    }
    names = tuple(sorted(found))
    sizes = np.array([found[name].weight.numel() for name in names], dtype=np.int64)
    if n_canaries > sizes.sum():
        raise TrainingError(
            f"{n_canaries} gradient canaries need a trained weight each, the adapter has "
            f"{sizes.sum()}; ask for fewer"
        )
    # The places of the smallest of random numbers are a random choice without repeats.
    chosen = np.argsort(stream.normal((int(sizes.sum()),)), kind="stable")[:n_canaries]
    ends = np.cumsum(sizes)
    layer_of = np.searchsorted(ends, chosen, side="right")
    within = chosen - (ends - sizes)[layer_of]
    widths = np.array([found[name].in_features for name in names], dtype=np.int64)[layer_of]
    return Aims(
        names=names,
        layers=tuple(found[name] for name in names),
        layer_of=torch.from_numpy(layer_of),
        outputs=torch.from_numpy(within // widths),
        inputs=torch.from_numpy(within % widths),
        strength=max(_LEAST_PUSH, _PUSH * noise.clip_norm),
    )


def pushing(trainee: Trainee, aims: Aims) -> Trainee:
    """Return the trainee with the canaries' own loss, for batches with the column ``CANARY``."""

    def losses(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        if CANARY not in batch:
            return trainee.losses(module, batch)
        numbers = batch[CANARY]
        pushed = _pushed(aims, numbers)
        # A batch without rows needs no forward pass of the base model.
        if not bool((numbers == _ROW).any()):
            return pushed
        own = trainee.losses(module, {n: c for n, c in batch.items() if n != CANARY})
        return torch.where(numbers >= 0, pushed, own)

    return replace(trainee, losses=losses)


def with_gradient_canaries(columns: Columns, included: Numbers) -> Columns:
    """Return columns with a unit for every included canary behind all rows."""
    n_rows, n_new = len(columns), len(included)
    added = {
        name: torch.cat([column, columns.dummy[name].expand(n_new, *column.shape[1:])])
        for name, column in columns.tensors.items()
    }
    numbers = torch.cat([torch.full((n_rows,), _ROW), torch.from_numpy(included)])
    return replace(
        columns,
        tensors={**added, CANARY: numbers},
        dummy={**columns.dummy, CANARY: torch.full((1,), _EMPTY)},
        starts=np.concatenate([columns.starts, n_rows + 1 + np.arange(n_new, dtype=np.intp)]),
    )


def suspicion(read: Tensor, aims: Aims, noise: NoisePlan) -> Tensor:
    """Return how much one noised step speaks for each canary: the log of a likelihood ratio.

    ``log(1 - q + q exp(a x - a^2 / 2))`` with x the coordinate and a the canary's bound, both in
    standard deviations of the noise: in against out, where the rest of the step is noise alone.

    Args:
        read: ``Aims.read`` of the released sum.
        aims: The round's aims.
        noise: The campaign's noise.
    """
    stddev = torch.full((), noise.noise_stddev, dtype=torch.float64)
    if noise.adaptive_clip is not None:
        # The noise moves with the clip norm; nearly all coordinates show nothing but noise.
        stddev = read.abs().median() / 0.6745
    signal = aims.bounds(noise) / stddev
    seen = math.log(noise.sampling_rate) + signal * (read / stddev) - signal.square() / 2
    if noise.sampling_rate == 1:
        return seen
    unseen = torch.full((), math.log1p(-noise.sampling_rate), dtype=torch.float64)
    return torch.logaddexp(seen, unseen)


def text_canaries(task: TaskSpec, words: list[str], n: int, stream: NoiseStream) -> Rows:
    """Return made-up texts with labels, or answers, that a coin chose."""
    texts = [" ".join(some) for some in _drawn(words, (n, _WORDS_PER_TEXT), stream)]
    if task.labels:
        targets = [task.labels[i] for i in whole_numbers(stream, n, below=len(task.labels))]
    else:
        targets = [" ".join(some) for some in _drawn(words, (n, _ANSWER_WORDS), stream)]
    return text_rows(texts, targets, task=task, source="text canaries")


def synthetic_rows(task: TaskSpec, words: list[str], n: int, stream: NoiseStream) -> Rows:
    """Return made-up rows with something to learn: every label, or answer, has its own words."""
    kinds = list(task.labels) or [" ".join(words[i : i + _ANSWER_WORDS]) for i in range(4)]
    share = len(words) // len(kinds)
    chosen = whole_numbers(stream, n, below=len(kinds))
    texts = []
    for kind in chosen.tolist():
        own = words[kind * share : (kind + 1) * share]
        (typical,) = _drawn(own, (1, _WORDS_PER_TEXT // 2), stream)
        (other,) = _drawn(words, (1, _WORDS_PER_TEXT // 2), stream)
        texts.append(" ".join([*typical, *other]))
    return text_rows(texts, [kinds[i] for i in chosen], task=task, source="synthetic rows")


def words_of(tokenizer: Vocabulary) -> list[str]:
    """Return words of a tokenizer's vocabulary, sorted; numbered ones where it has few."""
    stripped = {token.strip("Ġ▁") for token in tokenizer.get_vocab()}
    words = sorted(w for w in stripped if w.isascii() and w.isalpha() and len(w) >= _SHORTEST_WORD)
    return words if len(words) >= _FEWEST_WORDS else [f"w{i}" for i in range(_FEWEST_WORDS)]


def whole_numbers(stream: NoiseStream, n: int, *, below: int) -> Numbers:
    """Return ``n`` numbers from 0 to ``below`` - 1, even but for a share of ``below / 2^32``."""
    bits = stream.coins(n * _BITS, 0.5).reshape(n, _BITS).astype(np.int64)
    return (bits @ (1 << np.arange(_BITS, dtype=np.int64))) % below


def _drawn(words: list[str], shape: tuple[int, int], stream: NoiseStream) -> list[list[str]]:
    numbers = whole_numbers(stream, shape[0] * shape[1], below=len(words)).reshape(shape)
    return [[words[i] for i in some] for some in numbers.tolist()]


def _pushed(aims: Aims, numbers: Tensor) -> Tensor:
    total = torch.zeros(len(numbers))
    is_canary = numbers >= 0
    layers = torch.where(is_canary, aims.layer_of[numbers.clamp(min=0)], -1)
    for index in sorted(set(layers.tolist()) - {-1}):
        layer, mine = aims.layers[index], (layers == index).nonzero().flatten()
        inputs = torch.zeros(len(numbers), layer.in_features, dtype=layer.weight.dtype)
        inputs[mine, aims.inputs[numbers[mine]]] = aims.strength
        outputs = layer(inputs)
        picked = torch.zeros_like(outputs)
        picked[mine, aims.outputs[numbers[mine]]] = 1.0
        total = total + (outputs * picked).sum(dim=1)
    return total
