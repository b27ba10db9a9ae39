"""What every registered codec must keep, also one that an entry point adds."""

import numpy as np
import pytest

from fl_core import codecs  # noqa: F401  registration
from fl_core.campaign.components import ComponentSpec
from fl_core.codecs.codec import CODECS
from fl_core.errors import UpdateRejected
from fl_core.updates.update import l2_norm

SIZES = [("one number", {"a": (1,)}), ("a pair", {"q.lora_A": (4, 33), "q.lora_B": (17, 4)})]
SCALES = [1e-30, 1e-3, 1.0, 1e6]


@pytest.fixture(params=CODECS.kinds())
def codec(request):
    return CODECS.build(ComponentSpec(kind=request.param))


def draw(shapes, scale, seed):
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}


def dimension(tensors):
    return sum(tensor.size for tensor in tensors.values())


def difference(left, right):
    return {name: left[name] - right[name] for name in left}


# float32 sums of two tensors are themselves rounded: 2^-23 of their norm, with a factor of two
ROUNDING = 2.0**-22


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shapes", [s for _, s in SIZES], ids=[i for i, _ in SIZES])
def test_round_trip_keeps_names_shapes_and_the_stated_error(codec, shapes, scale):
    tensors = draw(shapes, scale, seed=1)
    bound = l2_norm(tensors)

    decoded = codec.decode(codec.encode(tensors))

    assert {n: t.shape for n, t in decoded.items()} == shapes
    assert all(tensor.dtype == np.float32 for tensor in decoded.values())
    assert l2_norm(difference(decoded, tensors)) <= codec.round_trip_error(
        bound, dimension(tensors)
    )


@pytest.mark.parametrize("scale", SCALES)
def test_norm_after_a_round_trip_is_within_the_stated_growth(codec, scale):
    tensors = draw(SIZES[1][1], scale, seed=2)

    decoded = codec.decode(codec.encode(tensors))

    assert l2_norm(decoded) <= codec.norm_growth(l2_norm(tensors), dimension(tensors))


@pytest.mark.parametrize("scale", SCALES)
def test_linear_codec_decodes_a_sum_to_the_sum(codec, scale):
    first, second = draw(SIZES[1][1], scale, seed=3), draw(SIZES[1][1], scale, seed=4)
    both = {name: first[name] + second[name] for name in first}

    summed = codec.decode(codec.encode(both))
    apart = [codec.decode(codec.encode(t)) for t in (first, second)]

    gap = l2_norm({name: summed[name] - apart[0][name] - apart[1][name] for name in summed})
    assert gap <= ROUNDING * l2_norm(both) or not codec.linear


def test_encoding_is_deterministic(codec):
    tensors = draw(SIZES[1][1], 1.0, seed=5)

    assert codec.encode(tensors) == codec.encode(dict(reversed(tensors.items())))


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"PK\x03\x04" + b"\0" * 40])
def test_bytes_of_something_else_are_rejected_as_payload(codec, data):
    with pytest.raises(UpdateRejected) as caught:
        codec.decode(data)

    assert caught.value.reason == "payload"
