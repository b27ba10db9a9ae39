"""Send every number as it is: 4 bytes each, exact.

The codec to compare the others with, and the right one while updates are small: LoRA of rank 4 on
a MiniLM is some 300 kB.
"""

from fl_core.campaign.components import Part
from fl_core.codecs.codec import CODECS
from fl_core.updates.payload import PayloadLimits, decode_tensors, encode_tensors
from fl_core.updates.update import Array, Tensors


@CODECS.register("float32")
class Float32(Part):
    """safetensors of float32; decoding gives back exactly what was encoded."""

    @property
    def linear(self) -> bool:
        """Whether decoding a sum of encodings gives the sum: it does."""
        return True

    def encode(self, tensors: Tensors) -> bytes:
        """Return the tensors as safetensors."""
        return encode_tensors(tensors)

    def decode(self, data: bytes) -> dict[str, Array]:
        """Return the tensors; every way in which bytes can lie is an UpdateRejected."""
        return decode_tensors(data, limits=PayloadLimits(max_bytes=len(data)))

    def norm_growth(self, bound: float, dimension: int) -> float:  # noqa: ARG002  exact in any dimension
        """Return ``bound``: nothing changes."""
        return bound

    def round_trip_error(self, bound: float, dimension: int) -> float:  # noqa: ARG002  exact
        """Return 0: nothing changes."""
        return 0.0
