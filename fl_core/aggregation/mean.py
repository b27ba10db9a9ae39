"""The weighted mean, tensor by tensor.

Over LoRA pairs the mean of A and the mean of B are taken apart, so the product of the result is
not the mean of the products (``adapters.algebra`` has both). Over FFA-LoRA, where A is one public
constant, the mean of B *is* the mean of the products (Sun et al. 2024, section 4).

Source: McMahan et al. 2017, Algorithm 1 (FedAvg), applied to deltas.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fl_core.aggregation.aggregator import AGGREGATORS, Aggregate, Cohort
from fl_core.campaign.components import Part
from fl_core.errors import IncompatibleParts
from fl_core.updates.update import Array


@AGGREGATORS.register("mean")
class Mean(Part):
    """sum_i w_i u_i / divisor."""

    def aggregate(
        self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
    ) -> Aggregate:
        """Combine the updates; one site moves the result by at most max_i w_i C_i / divisor."""
        _require_same_names(cohort)
        if any(weights[m.site] < 0 for m in cohort.members):
            raise IncompatibleParts("weights must be 0 or more")
        total = sum(weights[m.site] for m in cohort.members) if divisor is None else divisor
        if total <= 0:
            raise IncompatibleParts(f"the sum of the weights is {total}, it must be above 0")
        tensors: dict[str, Array] = {}
        for name in cohort.names:
            accumulator = np.zeros(cohort.members[0].tensors[name].shape, dtype=np.float64)
            for member in cohort.members:
                accumulator += weights[member.site] * member.tensors[name].astype(np.float64)
            tensors[name] = (accumulator / total).astype(np.float32)
        return Aggregate(
            tensors=tensors,
            contributors=tuple(m.site for m in cohort.members),
            divisor=total,
            l2_sensitivity=_sensitivity(cohort, weights, total),
        )


def _require_same_names(cohort: Cohort) -> None:
    # A tensor that one site lacks would be divided by the weight of all: silently too small.
    for member in cohort.members:
        odd = sorted(set(member.tensors) ^ set(cohort.names))
        if odd:
            raise IncompatibleParts(
                f"update of site {member.site!r} differs from the others in tensor {odd[0]!r}; "
                "all sites send the same tensors, or use mean_present"
            )


def _sensitivity(cohort: Cohort, weights: Mapping[str, float], total: float) -> float | None:
    bounds = [m.norm_bound for m in cohort.members]
    if any(bound is None for bound in bounds):
        return None
    return (
        max(
            weights[m.site] * bound
            for m, bound in zip(cohort.members, bounds, strict=True)
            if bound is not None
        )
        / total
    )


def mean_present(
    updates: Sequence[Mapping[str, Array]], weights: Sequence[float]
) -> dict[str, Array]:
    """Average every tensor over the updates that hold it, by their weights alone.

    For updates that cover different parts of a model. A tensor of one update comes back unchanged,
    never shrunk by the weight of updates that lack it. The result has no sensitivity stated: one
    update more changes the divisor of the tensors it holds.

    Args:
        updates: Tensors by name, float32.
        weights: One per update, >= 0.

    Raises:
        IncompatibleParts: A tensor is held by updates of weight 0 only, or a weight is negative.
    """
    means: dict[str, Array] = {}
    for name in sorted({name for update in updates for name in update}):
        held = [(u[name], w) for u, w in zip(updates, weights, strict=True) if name in u]
        total = sum(weight for _, weight in held)
        if total <= 0 or min(weight for _, weight in held) < 0:
            raise IncompatibleParts(
                f"weights of tensor {name!r} sum to {total}; they must be 0 or more, one above 0"
            )
        stack = np.stack([weight * tensor.astype(np.float64) for tensor, weight in held])
        means[name] = (stack.sum(axis=0) / total).astype(np.float32)
    return means


def weighted_metric(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted mean of one metric of several sites.

    Exact sums of site metrics are releases: NoPrivacy only (SOUNDNESS, rule 17).

    Raises:
        IncompatibleParts: No weight above 0, or a negative one.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise IncompatibleParts(f"weights sum to {total}; they must be 0 or more, one above 0")
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total
