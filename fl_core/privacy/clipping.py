"""Clip norms that follow the gradients, and the noise that pays for it.

One step answers two questions about the same batch: the sum of clipped gradients, and how many
units stayed under the clip norm. Both answers are noised, and together they cost one Gaussian event
of the stated multiplier, so the gradient's own noise is a little larger. The clip norm of the next
step follows from noised answers and public numbers only.

Source: Andrew et al. 2021, Algorithm 1 and section 3.
"""

import math

from fl_core.campaign.guarantees import AdaptiveClip
from fl_core.errors import IncompatibleParts

# Each bit is counted as b - 1/2, so one unit moves the sum by 1/2.
BIT_SENSITIVITY = 0.5


def adaptive_clip_noise(*, noise_multiplier_total: float, clipped_count_stddev: float) -> float:
    """Return the multiplier of the gradient's noise when the count is noised as well.

    ``(z^-2 - (2 s_b)^-2)^-1/2``: the two releases together are one Gaussian event of ``z``.

    Args:
        noise_multiplier_total: z, what the step is charged as.
        clipped_count_stddev: s_b, noise stddev on the sum of ``b - 1/2``.

    Raises:
        IncompatibleParts: Numbers not above 0, or z not below 2 s_b: the count alone would cost
            more than the whole step may.
    """
    numbers = (noise_multiplier_total, clipped_count_stddev)
    if not all(0 < number < math.inf and not isinstance(number, bool) for number in numbers):
        raise IncompatibleParts(
            f"noise_multiplier {noise_multiplier_total} and count_stddev {clipped_count_stddev} "
            "must both be above 0 and finite"
        )
    count_multiplier = clipped_count_stddev / BIT_SENSITIVITY
    if noise_multiplier_total >= count_multiplier:
        raise IncompatibleParts(
            f"adaptive_clip.count_stddev {clipped_count_stddev:g} is too small for "
            f"noise_multiplier {noise_multiplier_total:g}; it must be above half of it"
        )
    return 1 / math.sqrt(1 / noise_multiplier_total**2 - 1 / count_multiplier**2)


def next_clip_norm(
    clip_norm: float, *, noised_sum: float, divisor: float, rule: AdaptiveClip
) -> float:
    """Return the clip norm of the next step, ``C exp(-rate (b - quantile))``.

    Args:
        clip_norm: C of this step.
        noised_sum: Sum of ``b - 1/2`` over the batch, with its noise.
        divisor: The public batch size; b is ``noised_sum / divisor + 1/2``.
        rule: Quantile and learning rate.
    """
    share = noised_sum / divisor + BIT_SENSITIVITY
    return clip_norm * math.exp(-rule.learning_rate * (share - rule.quantile))
