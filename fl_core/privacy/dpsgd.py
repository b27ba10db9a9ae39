"""DP-SGD: noise on every step's sum of clipped gradients, with Poisson batches.

The plan covers one round at one site. Noise is ``noise_multiplier x sensitivity`` on the *sum*: the
division by the public batch size comes after it and is post-processing. One unit is drawn at most
once per step, with all its rows, and its gradient is clipped as one.

Source: Abadi et al. 2016, Algorithm 1; Andrew et al. 2021, section 3 for a moving clip norm.
"""

from typing import ClassVar

from fl_core.campaign.components import Part
from fl_core.campaign.guarantees import ClientDp, GroupBounds, Level, RecordDp
from fl_core.errors import IncompatibleParts
from fl_core.privacy.clipping import adaptive_clip_noise
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting, stated_multiplier


@MECHANISMS.register("dpsgd")
class DpSgd(Part):
    """Gaussian noise on sums of clipped gradients, one per unit."""

    protects: ClassVar[Level] = "record"

    def plan(self, guarantee: RecordDp | ClientDp, setting: NoiseSetting) -> NoisePlan:
        """Return noise and event of one round of ``setting.steps`` local steps.

        Protects one unit of one site, under add/remove of that unit, against everybody who sees
        what leaves the site. The sensitivity of the sum is the clip norm, or with one bound per
        group the root of the sum of their squares.

        Raises:
            IncompatibleParts: No RecordDp, a noise multiplier still open, or a count noise that
                would cost more than the step.
        """
        if not isinstance(guarantee, RecordDp):
            raise IncompatibleParts(
                "mechanism 'dpsgd' protects records, not clients; name it under privacy.record"
            )
        charged = stated_multiplier(guarantee, field="privacy.record")
        own, bound, adaptive = charged, guarantee.sensitivity, guarantee.adaptive_clip
        if adaptive is not None:
            own = adaptive_clip_noise(
                noise_multiplier_total=charged, clipped_count_stddev=adaptive.count_stddev
            )
        clip = guarantee.clip_norm
        return NoisePlan(
            stage="gradient",
            clip_norm=bound,
            group_bounds=clip if isinstance(clip, GroupBounds) else None,
            adaptive_clip=adaptive,
            assumed_sensitivity=bound,
            noise_stddev=own * bound,
            sampling_rate=guarantee.sampling_rate,
            steps=setting.steps,
            event=dpsgd_event(
                noise_multiplier=charged,
                sampling_rate=guarantee.sampling_rate,
                steps=setting.steps,
            ),
        )
