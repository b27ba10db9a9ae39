"""Clipping and noise of one site's whole update."""

import math

import numpy as np
import pytest

from fl_core.campaign.guarantees import ClientDp
from fl_core.privacy.gaussian import Gaussian, LocalGaussian
from fl_core.privacy.mechanism import NoiseSetting
from fl_core.privacy.randomness import SeededStream
from fl_core.rounds.client_noise import clipped_update, noised, protected_update, zero_update
from fl_core.updates.update import l2_norm

SHAPES = {"a": (2, 2), "b": (3,)}
SETTING = NoiseSetting(steps=8, sites=3, dimension=7)


def delta_of(a, b) -> dict:
    return {
        "a": np.full((2, 2), a, dtype=np.float32),
        "b": np.full((3,), b, dtype=np.float32),
    }


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # The norm of (1, 1, 1, 1, 2, 2, 2) is 4; to norm 2 everything is halved.
        (1.0, 2.0, (0.5, 1.0)),
        (0.5, 0.5, (0.5, 0.5)),
        (0.0, 0.0, (0.0, 0.0)),
        # One vector: a tensor that is long on its own takes the others down with it.
        (0.0, 1e30, (0.0, 2 / math.sqrt(3))),
    ],
    ids=["twice too long", "short", "zero", "huge"],
)
def test_update_is_cut_as_one_vector(a, b, expected):
    cut = clipped_update(delta_of(a, b), shapes=SHAPES, clip_norm=2.0)

    assert l2_norm(cut) <= 2.0
    np.testing.assert_allclose(cut["a"], expected[0], rtol=2e-6)
    np.testing.assert_allclose(cut["b"], expected[1], rtol=2e-6)
    assert {tensor.dtype for tensor in cut.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "delta",
    [
        delta_of(math.nan, 1.0),
        delta_of(1.0, math.inf),
        {"a": np.ones((2, 2), dtype=np.float32)},
        delta_of(1.0, 1.0) | {"c": np.ones(1, dtype=np.float32)},
        {"a": np.ones((4,), dtype=np.float32), "b": np.ones(3, dtype=np.float32)},
    ],
    ids=["nan", "inf", "tensor missing", "tensor too many", "other shape"],
)
def test_update_that_is_not_one_counts_as_zero(delta):
    cut = clipped_update(delta, shapes=SHAPES, clip_norm=2.0)

    assert {name: tensor.shape for name, tensor in cut.items()} == SHAPES
    assert not any(tensor.any() for tensor in cut.values())


def test_no_rounding_lifts_a_norm_above_the_bound():
    rng = np.random.default_rng(0)
    for size in np.geomspace(1e-3, 1e3, 200):
        delta = {"a": (size * rng.normal(size=(2, 2))).astype(np.float32)}
        delta["b"] = (size * rng.normal(size=3)).astype(np.float32)

        assert l2_norm(clipped_update(delta, shapes=SHAPES, clip_norm=0.1)) <= 0.1


def test_noise_is_the_streams_normals_in_name_order():
    stream, twin = SeededStream(5), SeededStream(5)

    drawn = noised(delta_of(1.0, 2.0), stddev=0.25, stream=stream)

    np.testing.assert_allclose(drawn["a"], 1.0 + 0.25 * twin.normal((2, 2)), rtol=1e-6)
    np.testing.assert_allclose(drawn["b"], 2.0 + 0.25 * twin.normal((3,)), rtol=1e-6)


@pytest.mark.parametrize(("mechanism", "is_noised"), [(Gaussian(), False), (LocalGaussian(), True)])
def test_only_where_the_site_adds_the_noise_its_update_leaves_with_it(mechanism, is_noised):
    guarantee = ClientDp(
        epsilon=8.0, delta=1e-3, clip_norm=2.0, noise_multiplier=1.0, mechanism="gaussian"
    )
    plan = mechanism.plan(guarantee, SETTING)

    sent = protected_update(zero_update(SHAPES), shapes=SHAPES, plan=plan, stream=SeededStream(1))

    assert any(tensor.any() for tensor in sent.values()) == is_noised
