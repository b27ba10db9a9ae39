"""A weighted mean in which no site counts for more than a few median sites.

An example of a part from outside the project: one file, and one line in the package's metadata.
One hospital ten times as large as the others decides alone what a weighted mean learns; here it
counts at most ``at_most`` times as much as the median site. The weights are public numbers, so
capping them reads nothing of an update, and the mean's own sensitivity holds for the new weights.
"""

from collections.abc import Mapping
from statistics import median
from typing import Annotated

from pydantic import Field

from fl_core import AGGREGATORS, Part
from fl_core.aggregation.aggregator import Aggregate, Cohort
from fl_core.aggregation.mean import Mean


@AGGREGATORS.register("capped_mean")
class CappedMean(Part):
    """sum_i min(w_i, at_most * median(w)) u_i / divisor.

    Attributes:
        at_most: Weight of one site at most, in units of the cohort's median weight, >= 1.
    """

    at_most: Annotated[float, Field(ge=1)] = 2.0

    def aggregate(
        self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
    ) -> Aggregate:
        """Combine the updates; one site moves the result by at most max_i w_i C_i / divisor.

        Raises:
            IncompatibleParts: A weight is negative or all are 0, or tensors differ between sites.
        """
        cap = self.at_most * median(weights[m.site] for m in cohort.members)
        capped = {m.site: min(weights[m.site], cap) for m in cohort.members}
        return Mean().aggregate(cohort, capped, divisor)
