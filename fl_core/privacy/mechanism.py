"""A mechanism: noise and the event that accounts for it, made in one call from one set of numbers.

The noise and its event never have two origins: whoever changes the noise multiplier changes both.
Every side rebuilds the plan from the frozen campaign and compares; nobody takes noise as an order.
"""

import math
from typing import Literal, Protocol, Self

from pydantic import model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.components import Registry
from fl_core.campaign.guarantees import RecordDp
from fl_core.campaign.specs import Count, Positive
from fl_core.updates.records import EventRecord, GaussianEvent, PoissonEvent, SelfComposedEvent


class NoisePlan(Document):
    """Noise of one round and the event it is charged as.

    Attributes:
        stage: What the noise is added to: every step's gradient sum, a site's update, a release.
        clip_norm: L2 bound of one unit's contribution, in units of the noised tensor.
        assumed_sensitivity: L2 sensitivity that the noise was computed for.
        noise_stddev: Stddev of the noise per coordinate, in units of the noised sum.
        sampling_rate: Poisson probability per step; 1 where every unit takes part.
        steps: Noised steps in one round.
        event: The round's event.
    """

    stage: Literal["gradient", "update", "release"]
    clip_norm: Positive
    assumed_sensitivity: Positive
    noise_stddev: Positive
    sampling_rate: Positive
    steps: Count
    event: EventRecord

    @model_validator(mode="after")
    def _event_is_of_this_noise(self) -> Self:
        if not math.isclose(_step_multiplier(self), _event_multiplier(self.event), rel_tol=1e-12):
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


class PrivacyMechanism(Protocol):
    """Builds the noise plan of one round."""

    def plan(self, guarantee: RecordDp, *, steps: int) -> NoisePlan:
        """Return noise and event of ``steps`` local steps under ``guarantee``.

        Raises:
            CampaignError: The guarantee leaves the noise open.
        """


MECHANISMS: Registry[PrivacyMechanism] = Registry("mechanism")
