"""Tensors as safetensors bytes, read as if an enemy had written them.

A payload comes from another machine. So its header is checked here in full, under limits, before
the library or numpy allocates anything: every offset, shape and length must agree with the bytes
that are there. Nothing is ever pickled, and only float32 is let in.

Source of the layout: the safetensors format (8 bytes little-endian header length, JSON header,
then the tensors without holes).
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from fl_core.errors import UpdateRejected
from fl_core.updates.update import Array, Tensors

METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_FIELDS = {"dtype", "shape", "data_offsets"}
_ITEM_BYTES = 4
SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class PayloadLimits:
    """How much a payload may ask of the machine that reads it.

    Attributes:
        max_bytes: Length of the whole payload.
        max_header_bytes: Length of the JSON header.
        max_tensors: Number of tensors.
        max_dims: Dimensions of one tensor.
        max_name_chars: Length of one tensor's name.
    """

    max_bytes: int
    max_header_bytes: int = 1 << 20
    max_tensors: int = 8192
    max_dims: int = 8
    max_name_chars: int = 512


def encode_tensors(tensors: Tensors) -> bytes:
    """Return the tensors as safetensors; equal tensors give equal bytes.

    Args:
        tensors: float32 by name, any shapes without a zero.

    Raises:
        TypeError: A tensor is not float32; a silent cast would change what was clipped or noised.
        ValueError: A tensor is empty, or named like the format's own metadata.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise TypeError(f"tensor {name!r} is {tensor.dtype}, expected float32")
        if tensor.size == 0 or name == METADATA:
            raise ValueError(f"tensor {name!r} of shape {tensor.shape} cannot be stored")
    encoded: bytes = safetensors_numpy.save(
        {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    )
    return encoded


def decode_tensors(data: bytes, *, limits: PayloadLimits) -> dict[str, Array]:
    """Return the tensors of a payload, by name in sorted order.

    Raises:
        UpdateRejected: Reason ``too_large`` (over a limit), ``payload`` (not safetensors, holes,
            overlaps, other types than F32), ``shape`` (shape and length disagree, too many
            dimensions) or ``not_finite`` (inf or NaN in a tensor); checked in this order.
    """
    if len(data) > limits.max_bytes:
        raise UpdateRejected(
            "too_large", f"payload has {len(data)} bytes, at most {limits.max_bytes} are allowed"
        )
    header, body_bytes = _read_header(data, limits)
    _require_sound_header(header, body_bytes, limits)
    try:
        tensors = safetensors_numpy.load(data)
    except SafetensorError as error:
        raise UpdateRejected("payload", f"payload is not safetensors: {error}") from error
    for name in sorted(tensors):
        require_finite(name, tensors[name])
    return {name: tensors[name].astype(np.float32, copy=False) for name in sorted(tensors)}


def require_finite(name: str, tensor: Array) -> None:
    """Refuse a tensor that holds inf or NaN.

    Raises:
        UpdateRejected: Reason ``not_finite``.
    """
    if not np.isfinite(tensor).all():
        raise UpdateRejected("not_finite", f"tensor {name!r} holds inf or nan")


def _read_header(data: bytes, limits: PayloadLimits) -> tuple[dict[str, Any], int]:
    if len(data) < _LENGTH.size:
        _refuse(f"payload has {len(data)} bytes, which is no safetensors header")
    (length,) = _LENGTH.unpack_from(data)
    if length > len(data) - _LENGTH.size:
        _refuse(f"header claims {length} bytes of a payload of {len(data)}")
    if length > limits.max_header_bytes:
        raise UpdateRejected(
            "too_large", f"header has {length} bytes, at most {limits.max_header_bytes} are allowed"
        )
    raw = data[_LENGTH.size : _LENGTH.size + length]
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UpdateRejected("payload", f"header is not JSON: {type(error).__name__}") from error
    if not isinstance(header, dict):
        _refuse("header is not a JSON object")
    return header, len(data) - _LENGTH.size - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _require_sound_header(header: dict[str, Any], body_bytes: int, limits: PayloadLimits) -> None:
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse("header metadata is not text by name")
    if len(header) > limits.max_tensors:
        raise UpdateRejected(
            "too_large", f"payload has {len(header)} tensors, at most {limits.max_tensors}"
        )
    spans = sorted(_require_sound_entry(name, entry, limits) for name, entry in header.items())
    position = 0
    for begin, end in spans:
        if begin != position:
            _refuse(f"tensors leave a hole or overlap at byte {min(begin, position)}")
        position = end
    if position != body_bytes:
        _refuse(f"tensors end at byte {position} of {body_bytes}")


def _require_sound_entry(name: str, entry: object, limits: PayloadLimits) -> tuple[int, int]:
    if len(name) > limits.max_name_chars:
        raise UpdateRejected("too_large", f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _refuse(f"tensor {name!r} is not described by {', '.join(sorted(_FIELDS))}")
    if entry["dtype"] != "F32":
        _refuse(f"tensor {name!r} is not of type F32")
    shape, offsets = _counts(entry["shape"], name), _counts(entry["data_offsets"], name)
    if len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004  begin and end
        _refuse(f"tensor {name!r} has no begin and end")
    if len(shape) > limits.max_dims or 0 in shape:
        raise UpdateRejected(
            "shape", f"tensor {name!r} has {len(shape)} dimensions of which one may be 0"
        )
    if math.prod(shape) * _ITEM_BYTES != offsets[1] - offsets[0]:
        raise UpdateRejected(
            "shape", f"tensor {name!r} has {offsets[1] - offsets[0]} bytes for another shape"
        )
    return offsets[0], offsets[1]


def _counts(value: object, name: str) -> list[int]:
    # type() and not isinstance: True is an int to Python and a lie in a header
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        _refuse(f"tensor {name!r} has a shape or offset that is no list of counts")
    return value


def _refuse(message: str) -> NoReturn:
    raise UpdateRejected("payload", message)


def shapes_of(tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name, as a manifest states them."""
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def salted(data: bytes) -> bytes:
    """Return a payload behind 32 fresh bytes, so that its hash is a commitment to it.

    The plain hash of an update without noise would let anybody who can guess the update check the
    guess (SOUNDNESS, rule 26).
    """
    return os.urandom(SALT_BYTES) + data


def unsalted(data: bytes) -> bytes:
    """Return a payload without its salt.

    Raises:
        UpdateRejected: Reason ``payload``: it is shorter than a salt.
    """
    if len(data) < SALT_BYTES:
        _refuse(f"payload has {len(data)} bytes, which is less than its salt")
    return data[SALT_BYTES:]
