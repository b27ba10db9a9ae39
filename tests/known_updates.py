"""Worlds of sites whose updates are known, so that noise can be told from what it is added to.

The sites' work is a fake with one fixed update; everything else is the product: ledgers,
signatures, stores, noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fl_core.artifacts import keys
from fl_core.codecs.float32 import Float32
from fl_core.privacy.forecast import with_noise
from fl_core.updates.payload import SALT_BYTES
from fl_core.updates.records import GateReport
from fl_core.updates.work import Exchange, Trained
from tests.round_steps import finish, plan_of, take_part
from tests.worlds import PASSED, World, campaign_of, world_of

# Large enough for a statistical test: 2 x (300 + 200) numbers and a head of 2 x 300 + 2.
WIDE = {
    "rank": 2,
    "alpha": 4,
    "targets": ("query",),
    "modules": {"layer.query": (200, 300)},
    "head_inputs": 300,
}
C = 0.5
CLIENT = {"epsilon": 60.0, "delta": 1e-3, "clip_norm": C, "noise_multiplier": 1.5}
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


@dataclass
class KnownWork:
    """A site's work that always ends in the same update, or raises."""

    delta: dict
    fails_with: Exception | None = None
    trainings: int = 0
    on_train: Callable[[], None] = lambda: None

    def gate(self) -> GateReport:
        return PASSED

    def train(self, exchange: Exchange) -> Trained:  # noqa: ARG002
        self.trainings += 1
        self.on_train()
        if self.fails_with is not None:
            raise self.fails_with
        return Trained(delta=self.delta)


def client_world(mechanism: str = "gaussian", *, size: float = 1.0, **changes) -> World:
    """A world of three sites with known updates; ``size`` scales them."""
    client = CLIENT | {"mechanism": mechanism}
    adapter = WIDE | {"rule": changes.pop("rule", "lora")}
    campaign = campaign_of(privacy={"client": client}, adapter=adapter, **changes)
    world = world_of(with_noise(campaign), epsilon=10_000.0)
    for n, site in enumerate(campaign.sites):
        rng = np.random.default_rng(n)
        world.works[site] = KnownWork(
            {
                name: (size * rng.normal(size=shape)).astype(np.float32)
                for name, shape in sorted(world.assembly.shapes(1).items())
            }
        )
    return world


def run_round(world: World, number: int = 1):
    for site in plan_of(world, number).cohort:
        take_part(world, site, number)
    return finish(world, number)


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def clipped(delta) -> np.ndarray:
    """The clipping of McMahan et al. 2018, Algorithm 1, written down once more."""
    vector = flat(delta)
    return vector * min(1.0, C / np.linalg.norm(vector))


def uploaded(world: World, site: str) -> dict:
    data = world.store.get(keys.payload("tiny", 1, site))
    return Float32().decode(data if world.assembly.central_noise is None else data[SALT_BYTES:])


def require_normal(noise: np.ndarray, *, stddev: float) -> None:
    """Mean, variance and shape of noise; each alarm is false with probability 1e-6."""
    n, unit = len(noise), noise / stddev
    assert abs(unit.mean()) < Z / math.sqrt(n)
    assert abs(np.mean(unit**2) - 1) < Z * math.sqrt(2 / n)
    # The fourth moment of a standard normal is 3, its sample mean has variance 96 / n.
    assert abs(np.mean(unit**4) - 3) < Z * math.sqrt(96 / n) + 96 / n
