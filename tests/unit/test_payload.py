"""Payloads as an enemy would write them."""

import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import UpdateRejected
from fl_core.updates.payload import PayloadLimits, decode_tensors, encode_tensors, shapes_of

LIMITS = PayloadLimits(max_bytes=1 << 20)
TENSORS = {
    "q.lora_B": np.arange(6, dtype=np.float32).reshape(3, 2),
    "head.bias": np.float32([0.5, -0.0]),
    "scale": np.asarray(3.0, dtype=np.float32),
}


def payload(header: object, body: bytes = b"") -> bytes:
    """Build a payload by hand; ``header`` may be JSON text or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_tensors_come_back_bit_equal_in_sorted_order():
    decoded = decode_tensors(encode_tensors(TENSORS), limits=LIMITS)

    assert list(decoded) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert decoded[name].dtype == np.float32
        assert decoded[name].shape == tensor.shape
        assert decoded[name].tobytes() == tensor.tobytes()


def test_bytes_do_not_depend_on_the_order_or_layout_of_the_tensors():
    turned = {name: TENSORS[name].copy(order="F") for name in reversed(TENSORS)}

    assert encode_tensors(turned) == encode_tensors(TENSORS)


def test_payload_is_what_the_safetensors_library_reads():
    loaded = safetensors.numpy.load(encode_tensors(TENSORS))

    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_file_with_text_metadata_is_read():
    data = safetensors.numpy.save(TENSORS, metadata={"format": "pt"})

    assert decode_tensors(data, limits=LIMITS).keys() == TENSORS.keys()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_other_types_are_not_cast_silently(dtype):
    with pytest.raises(TypeError, match="expected float32"):
        encode_tensors({"a": np.ones(2, dtype=dtype)})


@pytest.mark.parametrize(
    "tensors",
    [{"a": np.zeros((0, 3), np.float32)}, {"__metadata__": np.zeros(1, np.float32)}],
    ids=["empty", "metadata"],
)
def test_tensor_that_cannot_be_read_back_is_not_written(tensors):
    with pytest.raises(ValueError, match="cannot be stored"):
        encode_tensors(tensors)


FOUR = b"\0" * 4
NAN_BODY = struct.pack("<f", float("nan"))
CASES = {
    "nothing": (b"", "payload"),
    "seven bytes": (b"\0" * 7, "payload"),
    "a pickle": (pickle.dumps({"a": [1.0] * 100}), "payload"),
    "a zip": (b"PK\x03\x04" + b"\0" * 60, "payload"),
    "header longer than the payload": (struct.pack("<Q", 2**63) + b"{}", "payload"),
    "header cut off": (payload({"a": entry([1], [0, 4])}, FOUR)[:20], "payload"),
    "header not UTF-8": (payload(b'{"\xff":1}'), "payload"),
    "header a list": (payload(b"[]"), "payload"),
    "header nested too deep": (payload(b'{"a":' + b"[" * 200_000), "payload"),
    "header number too long": (payload(b'{"a":' + b"9" * 5000 + b"}"), "payload"),
    "header with NaN": (payload(b'{"__metadata__":{},"a":NaN}'), "payload"),
    "name twice": (
        payload(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            FOUR,
        ),
        "payload",
    ),
    "shape twice": (
        payload(b'{"a":{"dtype":"F32","shape":[9],"shape":[1],"data_offsets":[0,4]}}', FOUR),
        "payload",
    ),
    "metadata not text": (payload({"__metadata__": {"a": 1}}), "payload"),
    "entry not an object": (payload({"a": 1}), "payload"),
    "field missing": (payload({"a": {"dtype": "F32", "shape": [1]}}, FOUR), "payload"),
    "field unknown": (payload({"a": entry([1], [0, 4]) | {"x": 1}}, FOUR), "payload"),
    "half precision": (payload({"a": entry([2], [0, 4], "F16")}, FOUR), "payload"),
    "integers": (payload({"a": entry([1], [0, 4], "I32")}, FOUR), "payload"),
    "offsets past the end": (payload({"a": entry([2], [0, 8])}, FOUR), "payload"),
    "offsets backwards": (payload({"a": entry([1], [4, 0])}, FOUR), "payload"),
    "offsets negative": (payload({"a": entry([1], [-4, 0])}, FOUR), "payload"),
    "three offsets": (payload({"a": entry([1], [0, 4, 4])}, FOUR), "payload"),
    "offset true": (payload({"a": entry([1], [False, 4])}, FOUR), "payload"),
    "offset a float": (payload({"a": entry([1], [0.0, 4.0])}, FOUR), "payload"),
    "tensors overlap": (
        payload({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, FOUR),
        "payload",
    ),
    "a hole at the start": (payload({"a": entry([1], [4, 8])}, FOUR * 2), "payload"),
    "a hole between": (
        payload({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, FOUR * 3),
        "payload",
    ),
    "bytes after the end": (payload({"a": entry([1], [0, 4])}, FOUR * 2), "payload"),
    "shape of another length": (payload({"a": entry([2], [0, 4])}, FOUR), "shape"),
    "shape that overflows 64 bits": (payload({"a": entry([2**33, 2**33], [0, 4])}, FOUR), "shape"),
    "shape with a zero": (payload({"a": entry([0, 7], [0, 0])}), "shape"),
    "nine dimensions": (payload({"a": entry([1] * 9, [0, 4])}, FOUR), "shape"),
    "shape negative": (payload({"a": entry([-1], [0, 4])}, FOUR), "payload"),
    "nan": (payload({"a": entry([1], [0, 4])}, NAN_BODY), "not_finite"),
    "inf": (payload({"a": entry([1], [0, 4])}, struct.pack("<f", float("inf"))), "not_finite"),
}


@pytest.mark.parametrize(("data", "reason"), CASES.values(), ids=CASES)
def test_hostile_payload_is_rejected_with_its_reason(data, reason):
    with pytest.raises(UpdateRejected) as caught:
        decode_tensors(data, limits=LIMITS)

    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    # our own check was first, before the library saw the bytes
    assert "payload is not safetensors" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "tensors"),
    [
        (PayloadLimits(max_bytes=100), TENSORS),
        (PayloadLimits(max_bytes=1 << 20, max_header_bytes=64), TENSORS),
        (PayloadLimits(max_bytes=1 << 20, max_tensors=2), TENSORS),
        (PayloadLimits(max_bytes=1 << 20, max_name_chars=8), TENSORS),
    ],
    ids=["bytes", "header", "tensors", "name"],
)
def test_every_size_has_a_limit(limits, tensors):
    with pytest.raises(UpdateRejected) as caught:
        decode_tensors(encode_tensors(tensors), limits=limits)

    assert caught.value.reason == "too_large"


def test_hostile_name_cannot_break_a_log_line():
    data = payload({"a\nERROR forged line\u2028": entry([1], [0, 4])}, NAN_BODY)

    with pytest.raises(UpdateRejected) as caught:
        decode_tensors(data, limits=LIMITS)

    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=300, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=4),
    keep=st.integers(0, 400),
)
def test_damaged_payload_is_rejected_or_gives_finite_float32_tensors(cuts, keep):
    data = bytearray(encode_tensors(TENSORS))
    for position, replacement in cuts:
        data[position : position + len(replacement)] = replacement
    damaged = bytes(data[: len(data) - keep % 40])

    try:
        decoded = decode_tensors(damaged, limits=LIMITS)
    except UpdateRejected:
        return

    assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in decoded.values())


def test_shapes_are_stated_in_sorted_order():
    assert list(shapes_of(TENSORS).items()) == [
        ("head.bias", (2,)),
        ("q.lora_B", (3, 2)),
        ("scale", ()),
    ]
