"""DP-SGD: noise on every step's sum of clipped gradients, with Poisson batches.

The plan covers one round at one site. Noise is ``noise_multiplier x clip_norm`` on the *sum*: the
division by the public batch size comes after it and is post-processing.

Source: Abadi et al. 2016, Algorithm 1.
"""

from fl_core.campaign.components import Part
from fl_core.campaign.guarantees import RecordDp
from fl_core.errors import IncompatibleParts
from fl_core.privacy.events import dpsgd_event
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan


@MECHANISMS.register("dpsgd")
class DpSgd(Part):
    """Gaussian noise on clipped gradient sums, one row per unit."""

    def plan(self, guarantee: RecordDp, *, steps: int) -> NoisePlan:
        """Return noise and event of one round of ``steps`` local steps.

        Protects one row of one site, under add/remove of that row, against everybody who sees what
        leaves the site. The sensitivity of the sum is clip_norm: one row is drawn at most once per
        step and its gradient has at most that norm.

        Raises:
            IncompatibleParts: Another unit than the row, or a noise multiplier still open.
        """
        if guarantee.unit != "row" or guarantee.max_rows_per_unit != 1:
            raise IncompatibleParts(
                f"mechanism 'dpsgd' protects unit 'row' with one row each, not {guarantee.unit!r} "
                f'with {guarantee.max_rows_per_unit}; use unit = "row"'
            )
        if guarantee.noise_multiplier is None:
            raise IncompatibleParts(
                "privacy.record.noise_multiplier is open; lock the campaign to calibrate it"
            )
        return NoisePlan(
            stage="gradient",
            clip_norm=guarantee.clip_norm,
            assumed_sensitivity=guarantee.clip_norm,
            noise_stddev=guarantee.noise_multiplier * guarantee.clip_norm,
            sampling_rate=guarantee.sampling_rate,
            steps=steps,
            event=dpsgd_event(
                noise_multiplier=guarantee.noise_multiplier,
                sampling_rate=guarantee.sampling_rate,
                steps=steps,
            ),
        )
