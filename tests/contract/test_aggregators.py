"""What every registered aggregator keeps, asked of each without being named here."""

import numpy as np
import pytest

from fl_core import aggregation  # noqa: F401  registers the rules
from fl_core.aggregation.aggregator import AGGREGATORS, Member, member_order
from fl_core.campaign.components import ComponentSpec
from fl_core.errors import IncompatibleParts
from fl_core.updates.update import l2_norm

SHAPES = {"layer.lora_A": (2, 5), "layer.lora_B": (4, 2), "head.bias": (3,)}
SITES = ("east", "north", "south", "west", "centre")
CLIP = 0.7
KINDS = pytest.mark.parametrize("kind", AGGREGATORS.kinds())


def update_of(rng, *, norm=CLIP):
    raw = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    length = l2_norm(raw)
    return {name: (norm * t / length).astype(np.float32) for name, t in raw.items()}


def cohort_of(updates, *, norm_bound=CLIP):
    pairs = zip(SITES, updates, strict=True)
    return [Member(site=site, tensors=tensors, norm_bound=norm_bound) for site, tensors in pairs]


def build(kind):
    return AGGREGATORS.build(ComponentSpec(kind=kind))


@pytest.fixture
def rng():
    return np.random.default_rng(20)


WEIGHTS = {site: weight for weight, site in enumerate(SITES, start=1)}
EQUAL = dict.fromkeys(SITES, 1.0)


@KINDS
def test_order_of_sites_changes_no_bit(kind, rng):
    members = cohort_of([update_of(rng) for _ in SITES])

    one = build(kind).aggregate(member_order(members), WEIGHTS, None)
    other = build(kind).aggregate(member_order(members[::-1]), WEIGHTS, None)

    assert one.contributors == other.contributors == tuple(sorted(SITES))
    for name in SHAPES:
        assert np.array_equal(one.tensors[name], other.tensors[name])


@KINDS
def test_equal_updates_come_back(kind, rng):
    update = update_of(rng)

    result = build(kind).aggregate(member_order(cohort_of([update] * len(SITES))), EQUAL, None)

    assert set(result.tensors) == set(SHAPES)
    for name, tensor in result.tensors.items():
        assert tensor.dtype == np.float32
        assert tensor.shape == SHAPES[name]
        np.testing.assert_allclose(tensor, update[name], rtol=0, atol=1e-6)


@KINDS
@pytest.mark.parametrize("weights", [EQUAL, WEIGHTS], ids=["equal", "unequal"])
@pytest.mark.parametrize("divisor", [None, 10.0], ids=["sum of weights", "fixed"])
def test_stated_sensitivity_holds_on_random_neighbours(kind, weights, divisor, rng):
    for _ in range(50):
        updates = [update_of(rng, norm=CLIP * rng.random()) for _ in SITES]
        gone = int(rng.integers(len(SITES)))
        # The worst case as well as random ones: the site that goes sits at its bound.
        updates[gone] = update_of(rng)
        without = list(updates)
        without[gone] = {name: np.zeros_like(tensor) for name, tensor in updates[gone].items()}

        whole = build(kind).aggregate(member_order(cohort_of(updates)), weights, divisor)
        less = build(kind).aggregate(member_order(cohort_of(without)), weights, divisor)

        moved = l2_norm({name: whole.tensors[name] - less.tensors[name] for name in SHAPES})
        if whole.l2_sensitivity is not None:
            assert moved <= whole.l2_sensitivity * (1 + 1e-5)


@KINDS
def test_unbounded_updates_have_no_sensitivity(kind, rng):
    members = cohort_of([update_of(rng) for _ in SITES], norm_bound=None)

    assert build(kind).aggregate(member_order(members), EQUAL, None).l2_sensitivity is None


@KINDS
@pytest.mark.parametrize(
    "weights", [dict.fromkeys(SITES, 0.0), EQUAL | {"east": -1.0}], ids=["all zero", "negative"]
)
def test_impossible_weights_are_refused(kind, weights, rng):
    members = cohort_of([update_of(rng) for _ in SITES])

    with pytest.raises(IncompatibleParts, match="weights"):
        build(kind).aggregate(member_order(members), weights, None)


@KINDS
@pytest.mark.parametrize("odd", ["a tensor more", "a tensor less"])
def test_update_with_other_tensors_is_refused(kind, odd, rng):
    members = cohort_of([update_of(rng) for _ in SITES])
    tensors = dict(members[2].tensors)
    if odd == "a tensor more":
        tensors["extra"] = np.ones(2, dtype=np.float32)
    else:
        del tensors["head.bias"]
    members[2] = Member(site=members[2].site, tensors=tensors, norm_bound=CLIP)

    with pytest.raises(IncompatibleParts, match="differs"):
        build(kind).aggregate(member_order(members), EQUAL, None)
