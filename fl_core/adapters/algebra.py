"""What LoRA pairs stand for: their products, and the two ways to average them.

A pair's weight change is ``scaling * B @ A``. The mean of the changes is what a federation wants;
the product of the averaged A and B is what averaging tensor by tensor gives. The two agree where
all sites share one A (FFA-LoRA), and differ in general, by cross terms between sites.
Products are summed in float64 and returned as float32.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl_core.adapters.pair import LoraPair
from fl_core.errors import IncompatibleParts
from fl_core.updates.update import Array


def scaling_of(*, alpha: float | None, rank: int, rank_stabilized: bool = False) -> float:
    """Return what a pair's product is multiplied with; 1 where ``alpha`` is None.

    ``alpha / r`` (Hu et al. 2022, section 4.1), or with ``rank_stabilized`` ``alpha / sqrt(r)``
    (Kalajdzievski 2023).
    """
    if alpha is None:
        return 1.0
    return alpha / math.sqrt(rank) if rank_stabilized else alpha / rank


def product(pair: LoraPair) -> Array:
    """Return the weight change of one pair, ``(d_out, d_in)``.

    Source: Hu et al. 2022, section 4.1.
    """
    return _product(pair).astype(np.float32)


def mean_of_products(pairs: Sequence[LoraPair], weights: Sequence[float]) -> Array:
    """Return the weighted mean of the weight changes, ``(d_out, d_in)``; ranks may differ.

    Each pair counts with its own scaling. The rank of the result is up to the sum of the ranks.

    Raises:
        IncompatibleParts: No weight above 0, or a negative one.
    """
    total = _total(weights)
    changes = (w * _product(pair) for pair, w in zip(pairs, weights, strict=True))
    mean: Array = (np.sum(np.stack(list(changes)), axis=0) / total).astype(np.float32)
    return mean


def product_of_means(pairs: Sequence[LoraPair], weights: Sequence[float]) -> Array:
    """Return the weight change of the averaged A and B, ``(d_out, d_in)``; ranks must agree.

    Differs from ``mean_of_products`` unless all A, or all B, are the same (Sun et al. 2024,
    section 4).

    Raises:
        IncompatibleParts: Ranks or scalings differ, so there is no mean pair; or bad weights.
    """
    total = _total(weights)
    first = pairs[0]
    if any(p.a.shape != first.a.shape or p.scaling != first.scaling for p in pairs):
        raise IncompatibleParts(
            "pairs of different ranks or scalings have no mean pair; use the mean of products"
        )
    a = sum(w * p.a.astype(np.float64) for p, w in zip(pairs, weights, strict=True)) / total
    b = sum(w * p.b.astype(np.float64) for p, w in zip(pairs, weights, strict=True)) / total
    change: Array = (first.scaling * (np.asarray(b) @ np.asarray(a))).astype(np.float32)
    return change


def _product(pair: LoraPair) -> npt.NDArray[np.float64]:
    return pair.scaling * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))


def _total(weights: Sequence[float]) -> float:
    total = sum(weights)
    if min(weights, default=0) < 0 or total <= 0:
        raise IncompatibleParts(f"weights sum to {total}; they must be 0 or more, one above 0")
    return total
