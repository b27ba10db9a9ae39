"""A mechanism: noise and the event that accounts for it, made in one call from one set of numbers.

The noise and its event never have two origins: whoever changes the noise multiplier changes both.
Every side rebuilds the plan from the frozen campaign and compares; nobody takes noise as an order.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

from pydantic import model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.components import Registry
from fl_core.campaign.guarantees import AdaptiveClip, ClientDp, GroupBounds, Level, RecordDp
from fl_core.campaign.specs import Count, Positive
from fl_core.errors import IncompatibleParts
from fl_core.privacy.clipping import adaptive_clip_noise
from fl_core.updates.records import EventRecord, GaussianEvent, PoissonEvent, SelfComposedEvent


class NoisePlan(Document):
    """Noise of one round and the event it is charged as.

    Attributes:
        stage: What the noise is added to, which says who charges: every step's gradient sum or a
            site's update (the site), or the sum of all updates (the coordinator).
        clip_norm: L2 bound of one unit's contribution, in units of the noised tensor.
        group_bounds: One bound for the LoRA pairs and one for the head; None is ``clip_norm``
            over all tensors together.
        adaptive_clip: How ``clip_norm`` moves from step to step; the noise moves with it.
        assumed_sensitivity: L2 sensitivity that the noise was computed for.
        noise_stddev: Stddev of the noise per coordinate, in units of the noised sum; with
            ``adaptive_clip`` at the first step.
        sampling_rate: Poisson probability per step; 1 where every unit takes part.
        steps: Noised steps in one round.
        event: The round's event.
    """

    stage: Literal["gradient", "update", "release"]
    clip_norm: Positive
    group_bounds: GroupBounds | None = None
    adaptive_clip: AdaptiveClip | None = None
    assumed_sensitivity: Positive
    noise_stddev: Positive
    sampling_rate: Positive
    steps: Count
    event: EventRecord

    @model_validator(mode="after")
    def _event_is_of_this_noise(self) -> Self:
        charged = _event_multiplier(self.event)
        if self.adaptive_clip is not None:
            charged = adaptive_clip_noise(
                noise_multiplier_total=charged,
                clipped_count_stddev=self.adaptive_clip.count_stddev,
            )
        if not math.isclose(_step_multiplier(self), charged, rel_tol=1e-12):
            msg = "the event does not account for this noise"
            raise ValueError(msg)
        return self


def _step_multiplier(plan: NoisePlan) -> float:
    return plan.noise_stddev / plan.assumed_sensitivity


def _event_multiplier(event: EventRecord) -> float:
    match event:
        case GaussianEvent():
            return event.noise_multiplier
        case PoissonEvent():
            return event.event.noise_multiplier
        case SelfComposedEvent():
            return _event_multiplier(event.event)
        case _:
            msg = f"a noise plan cannot be of kind {event.kind!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class NoiseSetting:
    """What a mechanism must know beside the guarantee; public numbers of the frozen campaign.

    Attributes:
        steps: Local steps of one round.
        sites: Most sites that are asked in one round.
        dimension: Numbers in one update.
    """

    steps: int
    sites: int
    dimension: int


class PrivacyMechanism(Protocol):
    """Builds the noise plan of one round."""

    protects: ClassVar[Level]

    def plan(self, guarantee: RecordDp | ClientDp, setting: NoiseSetting) -> NoisePlan:
        """Return noise and event of one round under ``guarantee``.

        Raises:
            IncompatibleParts: Another guarantee than it protects, or one that leaves noise open.
        """


MECHANISMS: Registry[PrivacyMechanism] = Registry("mechanism")


def stated_multiplier(guarantee: RecordDp | ClientDp, *, field: str) -> float:
    """Return the noise multiplier of a guarantee.

    Raises:
        IncompatibleParts: It is open.
    """
    if guarantee.noise_multiplier is None:
        raise IncompatibleParts(
            f"{field}.noise_multiplier is open; lock the campaign to calibrate it"
        )
    return guarantee.noise_multiplier
