"""A site's whole update under ClientDp: clipped, and noised where the site adds the noise.

The unit is the site's whole data, so whatever its rows did to the training, outwardly it is one
vector of bounded norm. A training that fails, or ends in inf or NaN, counts as an update of zero:
by selection, not by multiplication (SOUNDNESS, rules 2 and 18). Clipping is flat, one norm over all
tensors together. Noise comes before any codec (rule 24).
"""

from collections.abc import Mapping

import numpy as np

from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.updates.update import Array, l2_norm

# Rounding to float32 lifts the norm, and that of a mean of updates, by up to 1e-7 of itself; the
# margin keeps the bound exact.
_MARGIN = 1 - 1e-6


def zero_update(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the update of a site that has none: zeros of the round's shapes, float32."""
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in sorted(shapes.items())}


def clipped_update(
    delta: Mapping[str, Array], *, shapes: Mapping[str, tuple[int, ...]], clip_norm: float
) -> dict[str, Array]:
    """Return a delta scaled down so that its L2 norm is at most ``clip_norm``.

    One that holds inf or NaN, or is not of the round's shapes, becomes zero. Nothing is raised and
    nothing else is returned: what the norm was depends on the site's rows.

    Args:
        delta: LoRA tensors by name, float32.
        shapes: Shape of every tensor of the round by name.
        clip_norm: L2 bound over all tensors together, > 0, in units of the delta.

    Source: McMahan et al. 2018, Algorithm 1, FlatClip.
    """
    found = {name: tuple(tensor.shape) for name, tensor in delta.items()}
    is_whole = found == dict(shapes)
    if not is_whole or not all(np.isfinite(tensor).all() for tensor in delta.values()):
        return zero_update(shapes)
    # In float64: the largest float32 values square to 1e77, which is still finite.
    norm, bound = l2_norm(delta), _MARGIN * clip_norm
    if norm <= bound:
        return {name: delta[name].astype(np.float32) for name in sorted(delta)}
    scale = bound / norm
    return {
        name: (delta[name].astype(np.float64) * scale).astype(np.float32) for name in sorted(delta)
    }


def noised(tensors: Mapping[str, Array], *, stddev: float, stream: NoiseStream) -> dict[str, Array]:
    """Return tensors with independent Gaussian noise on every coordinate, float32.

    Args:
        tensors: By name, float32.
        stddev: In units of the tensors.
        stream: Fresh for this draw; names are drawn in sorted order.
    """
    return {
        name: (
            tensors[name] + stddev * stream.normal(tensors[name].shape).astype(np.float64)
        ).astype(np.float32)
        for name in sorted(tensors)
    }


def protected_update(
    delta: Mapping[str, Array],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    plan: NoisePlan,
    stream: NoiseStream,
) -> dict[str, Array]:
    """Return what a site sends under ClientDp: clipped, and noised if the site adds the noise.

    Protects the site's whole data, under zeroing its update. With noise at the site it does so
    against everybody who sees what leaves; assumed is that ``stream`` is a secret CSPRNG. Without,
    the coordinator sees the clipped update as it is.

    Args:
        delta: The trained delta.
        shapes: Shape of every tensor of the round by name.
        plan: Built by the site from the frozen campaign.
        stream: Fresh for this attempt.
    """
    clipped = clipped_update(delta, shapes=shapes, clip_norm=plan.clip_norm)
    if plan.stage != "update":
        return clipped
    return noised(clipped, stddev=plan.noise_stddev, stream=stream)
