"""What an aggregation rule is, and the registry of rules.

The sensitivity travels with the aggregate: only the rule knows how far one site can move its
result, so the noise is computed from what the rule states and never from a guess beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_core.campaign.components import Registry
from fl_core.updates.update import Array, Tensors


@dataclass(frozen=True, slots=True)
class Member:
    """One accepted update as a rule sees it.

    Attributes:
        site: Name of the site.
        tensors: Its delta by name, float32.
        norm_bound: L2 bound that was enforced on it, or None for unbounded.
    """

    site: str
    tensors: Tensors
    norm_bound: float | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """The accepted updates of a round, in sorted site order."""

    members: tuple[Member, ...]

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted; all members have the same, which was verified on arrival."""
        return sorted(self.members[0].tensors)

    def stack(self, name: str) -> npt.NDArray[np.float64]:
        """Return one tensor of all sites, ``(n_sites, *shape)`` float64."""
        return np.stack([np.asarray(m.tensors[name], dtype=np.float64) for m in self.members])


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A cohort's combined delta.

    Attributes:
        tensors: Combined delta by name, float32.
        contributors: Sites whose updates went in, sorted.
        divisor: What the weighted sum was divided by.
        l2_sensitivity: L2 distance that zeroing one site's update can cause; None is unbounded.
    """

    tensors: dict[str, Array]
    contributors: tuple[str, ...]
    divisor: float
    l2_sensitivity: float | None


class Aggregator(Protocol):
    """Combines a cohort's updates."""

    def aggregate(
        self, cohort: Cohort, weights: Mapping[str, float], divisor: float | None
    ) -> Aggregate:
        """Combine the updates.

        Args:
            cohort: At least one member.
            weights: Weight by site, >= 0, at least one > 0.
            divisor: Fixed divisor, or None for the sum of the weights present.

        Raises:
            IncompatibleParts: The rule cannot work with so few sites, or with these weights.
        """


AGGREGATORS: Registry[Aggregator] = Registry("aggregation")


def member_order(members: Sequence[Member]) -> Cohort:
    """Return a cohort in sorted site order, so that every machine sums alike."""
    return Cohort(members=tuple(sorted(members, key=lambda m: m.site)))
