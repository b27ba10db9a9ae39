"""The weighted mean, tensor by tensor.

Over LoRA pairs the mean of A and the mean of B are taken apart, so the product of the result is
not the mean of the products (``adapters.algebra`` has both). Over FFA-LoRA, where A is one public
constant, the mean of B *is* the mean of the products (Sun et al. 2024, section 4).

Source: McMahan et al. 2017, Algorithm 1 (FedAvg), applied to deltas.
"""

from collections.abc import Mapping

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


def _sensitivity(cohort: Cohort, weights: Mapping[str, float], total: float) -> float | None:
    bounds = [m.norm_bound for m in cohort.members]
    if any(bound is None for bound in bounds):
        return None
    return max(
        weights[m.site] * bound
        for m, bound in zip(cohort.members, bounds, strict=True)
        if bound is not None
    ) / total
