"""The one stream of randomness for noise and Poisson coins (SOUNDNESS, rule 6).

A released update can publish pure noise: at the start every lora_A gradient is exactly zero. From
enough outputs of a default generator (Mersenne Twister) its state can be solved, and with it all
noise that follows. So noise and coins come from a keystream of AES-256 in counter mode under a
fresh key of the operating system, which nobody has shown how to tell from chance.
Floating-point Gaussian noise still has the holes that Mironov 2012 describes; that is stated
outside the claim.
"""

import hashlib
import os
from typing import ClassVar, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_core.errors import PrivacyError

_WORD = 2.0**64
# Bounds memory: the keystream of one call is made in blocks of this many pairs of normals.
_PAIRS_PER_BLOCK = 1 << 16


class NoiseStream(Protocol):
    """Where noise and coins come from; each call goes on where the last one ended."""

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return independent standard normals."""

    def coins(self, n: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return ``n`` independent coins, each True with probability ``rate`` in [0, 1]."""


class _KeyStream:
    """Keystream of AES-256-CTR turned into normals and coins.

    Method of the normals: Box and Muller 1958, in float64. The radius comes from a 128-bit
    uniform, so its tail ends at 13.3 standard deviations, which is passed with probability 2^-128;
    the uniform is never 0 or 1. The angle comes from 64 bits.
    """

    __slots__ = ("_cipher", "_process")

    def __init__(self, key: bytes) -> None:
        # The counter starts at zero: a key is used for one stream only.
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return independent standard normals of ``shape``, float32."""
        n = int(np.prod(shape, dtype=np.int64))
        flat = np.empty(n + n % 2, dtype=np.float32)
        for start in range(0, len(flat), 2 * _PAIRS_PER_BLOCK):
            part = flat[start : start + 2 * _PAIRS_PER_BLOCK]
            part[:] = normals_from(self._words(3 * (len(part) // 2)))
        return flat[:n].reshape(shape)

    def coins(self, n: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return ``n`` coins, True with probability ``rate`` rounded down to a multiple of 2^-64.

        Raises:
            PrivacyError: ``rate`` outside [0, 1].
        """
        if not 0 <= rate <= 1:
            raise PrivacyError(f"rate is {rate}, it must lie between 0 and 1")
        if rate == 1:
            return np.ones(n, dtype=np.bool_)
        return self._words(n) < np.uint64(int(rate * _WORD))

    def _words(self, n: int) -> npt.NDArray[np.uint64]:
        if os.getpid() != self._process:
            # Both sides of a fork would draw the same noise, and their difference would show rows.
            raise PrivacyError("a noise stream was carried into another process; make one there")
        return np.frombuffer(self._cipher.update(bytes(8 * n)), dtype="<u8")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or stored")


def normals_from(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Return two standard normals for every three uniform 64-bit words.

    Source: Box and Muller 1958; ``(sqrt(-2 ln u) cos t, sqrt(-2 ln u) sin t)``.
    """
    high, low, angle = words.reshape(3, -1).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((high + (low + 0.5) / _WORD) / _WORD))
    turn = angle * (2.0 * np.pi / _WORD)
    return np.concatenate([radius * np.cos(turn), radius * np.sin(turn)]).astype(np.float32)


class SecureStream(_KeyStream):
    """Noise and coins that nobody can predict, replay or read back.

    The 256-bit key comes from the operating system, lives in the cipher only and is never stored.
    Make one per training attempt; it cannot be copied, stored or used after a fork.
    """

    __slots__ = ()
    is_private: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(os.urandom(32))


class SeededStream(_KeyStream):
    """The same noise and coins for the same seed: MAKES A RUN NON-PRIVATE.

    For simulation only (SOUNDNESS, rule 7): whoever knows the seed subtracts the noise and knows
    every batch. A run that uses it is labelled "simulation, no guarantee".
    """

    __slots__ = ()
    is_private: ClassVar[bool] = False

    def __init__(self, seed: int) -> None:
        super().__init__(hashlib.sha256(f"fedloom simulation {seed}".encode()).digest())
