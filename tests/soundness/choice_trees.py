"""What an adversary gains who picks each release in view of the outputs of all earlier ones.

The privacy loss of a sequence is the sum of its releases' losses, and for a fixed sequence delta at
epsilon is the mean of ``(1 - exp(epsilon - loss))`` over its positive part. An adversary who sees
the outputs knows the loss so far, so the worst delta of a tree of choices is found backwards: at
every leaf that part, at every node the best of the allowed releases' means. Losses are rounded
*down* to a grid, so what comes out is a delta that an adversary does reach, never too much.
Written from the definition with numpy alone; no accountant is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
# Rounding down costs up to this much of every step's loss.
GRID = 5e-4
# Losses so far beyond this make no difference to a delta near 1e-5.
_FAR = 25.0


@dataclass(frozen=True, order=True)
class Release:
    """Steps of one kind: noise multiplier, sampling rate, how many."""

    noise: float
    rate: float = 1.0
    count: int = 1


@dataclass(frozen=True)
class Losses:
    """Probabilities of losses ``(low + i) * GRID``; what is missing to 1 has no loss at all."""

    low: int
    chance: Vector


@cache
def losses_of(release: Release, *, removed: bool) -> Losses:
    """Return the loss when the unit was there (``removed``), or when it was added."""
    one = _one_step(release.noise, release.rate, removed)
    # Loss adds up over steps: squaring and multiplying convolutions.
    result, power, left = None, one, release.count
    while left:
        if left & 1:
            result = power if result is None else _convolved(result, power)
        power, left = (_convolved(power, power), left >> 1) if left > 1 else (power, 0)
    return result


def _one_step(noise: float, rate: float, removed: bool) -> Losses:
    # One coordinate decides: N(0, z^2) without the unit, a mixture with N(1, z^2) with it.
    x = np.linspace(-12 * noise, 1 + 12 * noise, 200_001)
    without = np.exp(-(x**2) / (2 * noise**2))
    ratio = 1 - rate + rate * np.exp((2 * x - 1) / (2 * noise**2))
    density, loss = (without * ratio, np.log(ratio)) if removed else (without, -np.log(ratio))
    chance = density / (np.sqrt(2 * np.pi) * noise) * (x[1] - x[0])
    # A larger loss is as good as lost anyway, and a smaller one as good as none.
    cells = np.floor(np.clip(loss, -3 * _FAR, 3 * _FAR) / GRID).astype(np.int64)
    low = int(cells.min())
    return _trimmed(low, np.bincount(cells - low, weights=chance))


def _convolved(a: Losses, b: Losses) -> Losses:
    n = len(a.chance) + len(b.chance) - 1
    size = 1 << n.bit_length()
    spectrum = np.fft.rfft(a.chance, size) * np.fft.rfft(b.chance, size)
    return _trimmed(a.low + b.low, np.maximum(np.fft.irfft(spectrum, size)[:n], 0.0))


def _trimmed(low: int, chance: Vector) -> Losses:
    # Chances under 1e-15 together change no delta here, and leaving them out lowers it.
    mass = np.cumsum(chance)
    first = int(np.searchsorted(mass, 1e-15))
    last = int(np.searchsorted(mass, mass[-1] - 1e-15)) + 1
    return Losses(low + first, chance[first:last])


def worst_delta(
    allowed: Callable[[tuple[Release, ...]], Sequence[Release]], *, epsilon: float, removed: bool
) -> float:
    """Return the largest delta at ``epsilon`` over all ways to choose, and to stop.

    Args:
        allowed: Releases that may follow those so far, whose order does not matter; none ends it.
        epsilon: Of the cap.
        removed: Direction of the neighbours.
    """
    cells = np.arange(floor(-_FAR / GRID), ceil((epsilon + _FAR) / GRID) + 1)
    leaf = np.maximum(0.0, -np.expm1(np.minimum(epsilon - cells * GRID, 0.0)))
    known: dict[tuple[Release, ...], Vector] = {}

    def best_after(so_far: tuple[Release, ...]) -> Vector:
        state = tuple(sorted(so_far))
        if state not in known:
            means = [
                _mean_over(best_after((*state, release)), losses_of(release, removed=removed))
                for release in allowed(state)
            ]
            known[state] = np.maximum.reduce([leaf, *means])
        return known[state]

    return float(best_after(())[-cells[0]])


def _mean_over(best: Vector, losses: Losses) -> Vector:
    # By loss so far: sum over the next loss of chance x best(loss so far + next loss). Beyond the
    # ends the end's value stands: below it is the least there is, above it all but 1.
    n, k = len(best), len(losses.chance)
    before, behind = max(0, -losses.low), max(0, losses.low + k - 1)
    padded = np.concatenate([np.full(before, best[0]), best, np.full(behind, best[-1])])
    size = 1 << (len(padded) + k).bit_length()
    spectrum = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(losses.chance, size))
    start = before + losses.low
    return np.clip(np.fft.irfft(spectrum, size)[start : start + n], 0.0, 1.0)
