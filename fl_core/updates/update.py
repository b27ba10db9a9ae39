"""An update: the tensors of one site in one round, with their signed manifest.

Tensors are float32 by name everywhere outside training, so the coordinator needs no torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.updates.manifest import UpdateManifest

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Update:
    """The signed thing; ``tensors`` are the site's delta by name, float32."""

    tensors: Tensors
    manifest: UpdateManifest


def l2_norm(tensors: Tensors) -> float:
    """Return the L2 norm over all tensors together, summed in float64 in sorted name order."""
    squares = (
        float(np.sum(np.square(tensors[name], dtype=np.float64))) for name in sorted(tensors)
    )
    return math.sqrt(sum(squares))
