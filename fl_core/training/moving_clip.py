"""A clip norm that moves from step to step, and what of it outlives a round.

Each step's count of units of which nothing was cut is noised from the same stream as the gradient;
the next clip norm follows from that noised count and public numbers alone. So does what is kept
for the next round: it is a function of charged outputs (SOUNDNESS, rules 1 and 12).

Source: Andrew et al. 2021, Algorithm 1, with the units of a step in the place of clients.
"""

from dataclasses import dataclass

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Count, Positive
from fl_core.privacy.clipping import next_clip_norm
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.private_training import Bounds, ClippedSum

# A count that is mostly noise sends the clip norm on a random walk; these public ends stop it.
_FARTHEST = 2.0**20


class ClipState(Document):
    """What one round leaves for the next, in the outbox of the site.

    Attributes:
        round: Round that left it.
        clip_norm: Clip norm of the next step.
    """

    round: Count
    clip_norm: Positive


@dataclass(slots=True)
class StepClip:
    """Bounds and noise of the step at hand.

    Attributes:
        noise: The round's plan.
        clip_norm: Of this step; without ``adaptive_clip`` it stays.
    """

    noise: NoisePlan
    clip_norm: float

    @property
    def bounds(self) -> Bounds:
        """What the gradient of one unit is clipped to."""
        return self.noise.group_bounds or self.clip_norm

    @property
    def noise_stddev(self) -> float:
        """Stddev of the noise on the gradient sum; it moves with the clip norm."""
        if self.noise.adaptive_clip is None:
            return self.noise.noise_stddev
        return self.noise.noise_stddev / self.noise.assumed_sensitivity * self.clip_norm

    def move(self, step: ClippedSum, *, divisor: float, stream: NoiseStream) -> None:
        """Go on to the next step's clip norm, by the noised count of this one."""
        rule = self.noise.adaptive_clip
        if rule is None:
            return
        noised = step.bit_sum + rule.count_stddev * float(stream.normal((1,))[0])
        # A share lies between 0 and 1, whatever its noise says.
        noised = min(max(noised, -divisor / 2), divisor / 2)
        moved = next_clip_norm(self.clip_norm, noised_sum=noised, divisor=divisor, rule=rule)
        start = self.noise.clip_norm
        self.clip_norm = min(max(moved, start / _FARTHEST), start * _FARTHEST)
