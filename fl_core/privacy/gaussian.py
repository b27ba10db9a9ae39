"""Gaussian noise on whole updates: centrally after aggregation, or locally at every site.

Both clip a site's whole update and take no credit for who was asked: the cohort is visible in the
store and the UI, so every round counts in full (q = 1). They differ in where the noise is added,
so in whom they protect against and who charges.

Source: McMahan et al. 2018, Algorithm 1, with the fixed-denominator estimator and without
sampling; Balle and Wang 2018 for the event.
"""

from typing import ClassVar, Literal

from fl_core.campaign.components import Part
from fl_core.campaign.guarantees import ClientDp, Level, RecordDp
from fl_core.errors import IncompatibleParts
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting, stated_multiplier
from fl_core.updates.records import GaussianEvent


@MECHANISMS.register("gaussian")
class Gaussian(Part):
    """Noise on the sum of all clipped updates, added and charged by the coordinator."""

    protects: ClassVar[Level] = "client"

    def plan(self, guarantee: RecordDp | ClientDp, setting: NoiseSetting) -> NoisePlan:  # noqa: ARG002
        """Return the noise of one release, in units of the *sum* of clipped updates.

        Protects the whole data of one site, under zeroing its update, against everybody who sees
        releases and nothing else. The coordinator sees raw updates: nothing holds against it.

        Raises:
            IncompatibleParts: No ClientDp, or a noise multiplier still open.
        """
        return _plan(guarantee, "release", kind="gaussian")


@MECHANISMS.register("local_gaussian")
class LocalGaussian(Part):
    """Noise on every site's own clipped update, added and charged by the site."""

    protects: ClassVar[Level] = "client"

    def plan(self, guarantee: RecordDp | ClientDp, setting: NoiseSetting) -> NoisePlan:  # noqa: ARG002
        """Return the noise of one update.

        Protects the whole data of one site, under zeroing its update, against everybody who sees
        what leaves the site, the coordinator included.

        Raises:
            IncompatibleParts: No ClientDp, or a noise multiplier still open.
        """
        return _plan(guarantee, "update", kind="local_gaussian")


def _plan(
    guarantee: RecordDp | ClientDp, stage: Literal["update", "release"], *, kind: str
) -> NoisePlan:
    if not isinstance(guarantee, ClientDp):
        raise IncompatibleParts(
            f"mechanism {kind!r} protects clients, not records; name it under privacy.client"
        )
    multiplier = stated_multiplier(guarantee, field="privacy.client")
    return NoisePlan(
        stage=stage,
        clip_norm=guarantee.clip_norm,
        assumed_sensitivity=guarantee.clip_norm,
        noise_stddev=multiplier * guarantee.clip_norm,
        sampling_rate=1.0,
        steps=1,
        event=GaussianEvent(noise_multiplier=multiplier),
    )
