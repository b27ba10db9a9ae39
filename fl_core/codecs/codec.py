"""What a codec is, and the registry of codecs.

A codec says what it does to a norm and to a sum, because sensitivity and masks rest on both.
"""

from typing import Protocol

from fl_core.campaign.components import Registry
from fl_core.updates.update import Array, Tensors


class Codec(Protocol):
    """Turns named float32 tensors into bytes and back."""

    @property
    def linear(self) -> bool:
        """Whether decoding a sum of encodings gives the sum; what masks need."""

    def encode(self, tensors: Tensors) -> bytes:
        """Return the payload."""

    def decode(self, data: bytes) -> dict[str, Array]:
        """Return the tensors.

        Raises:
            UpdateRejected: The bytes are not a payload of this codec (reason ``payload``).
        """

    def norm_growth(self, bound: float, dimension: int) -> float:
        """Return an L2 bound after a round trip, given ``bound`` before it."""

    def round_trip_error(self, bound: float, dimension: int) -> float:
        """Return how far (L2) a round trip moves tensors of norm at most ``bound``."""


CODECS: Registry[Codec] = Registry("codec")
