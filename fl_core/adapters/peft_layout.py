"""The files of an adapter, in the layout that plain peft loads.

The coordinator writes and reads adapters without torch, so the layout is built here from numpy
arrays: ``adapter_model.safetensors`` under peft's tensor names, ``adapter_config.json`` as peft
0.21 reads it, ``head.safetensors`` for classification, and ``fedloom.json``, which says how logits
come from the encoder. Reading is strict: a file, tensor, shape or setting too many or too few is
an error, because peft itself loads a partial adapter with a warning at most. The base model stands
in the config under its logical name; a path would put one machine's folders into the hash.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_core.adapters.pair import HEAD, LORA_A, LORA_B, LoraPair, LoraState
from fl_core.adapters.rules import is_trained
from fl_core.artifacts.content_hash import files_sha256
from fl_core.artifacts.documents import sha256_hex
from fl_core.artifacts.keys import ADAPTER_CONFIG, ADAPTER_FILE, HEAD_FILE
from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.errors import AdapterMismatch, CampaignError, UpdateRejected
from fl_core.updates.payload import PayloadLimits, decode_tensors, encode_tensors
from fl_core.updates.update import Array, Tensors

TASK_FILE = "fedloom.json"
POOLING = "mean_layer_norm"
PEFT_PREFIX = "base_model.model."

Files = dict[str, bytes]


def tensor_shapes(
    spec: AdapterSpec, task: TaskSpec, *, round_number: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an adapter by its name in LoraState, sorted.

    Args:
        spec: A locked adapter; A is ``(rank, d_in)``, B ``(d_out, rank)``.
        task: Classification adds ``head.weight`` ``(n_labels, head_inputs)`` and ``head.bias``.
        round_number: Leave out what this round freezes; the rest are the tensors of its updates.
            None: all tensors.

    Raises:
        CampaignError: The adapter is not locked.
    """
    if spec.modules is None:
        raise CampaignError(
            "adapter.modules is open, so the shapes of the adapter are unknown",
            hint="run `fedloom check CAMPAIGN.toml --lock`",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (d_out, d_in) in spec.modules.items():
        shapes[module + LORA_A] = (spec.rank, d_in)
        shapes[module + LORA_B] = (d_out, spec.rank)
    if task.kind == "classification":
        if spec.head_inputs is None:
            raise CampaignError(
                "adapter.head_inputs is open, so the shape of the head is unknown",
                hint="run `fedloom check CAMPAIGN.toml --lock`",
            )
        shapes[HEAD + "weight"] = (len(task.labels), spec.head_inputs)
        shapes[HEAD + "bias"] = (len(task.labels),)
    return {
        name: shape
        for name, shape in sorted(shapes.items())
        if round_number is None or is_trained(name, spec, round_number=round_number)
    }


def initial_state(spec: AdapterSpec, task: TaskSpec) -> LoraState:
    """Return the adapter before the first round: B and the head are zero, A is public and random.

    ``lora`` draws A like peft, uniform in +-1/sqrt(d_in) (Kaiming with a = sqrt(5)). Rules that
    train B with A frozen give A's rows unit expected length, uniform in +-sqrt(3/d_in): then
    ``|A x|`` is the length of a random projection of x and the gradient of B is not starved beside
    the head's under one clip norm. Draws come from ``init_seed`` in sorted module order.
    """
    shapes = tensor_shapes(spec, task)
    rng = np.random.default_rng(spec.init_seed)
    spread = 1.0 if spec.rule == "lora" else 3.0
    tensors: dict[str, Array] = {}
    for name, shape in shapes.items():
        if name.endswith(LORA_A):
            bound = math.sqrt(spread / shape[1])
            tensors[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, dtype=np.float32)
    return state_from_tensors(tensors, spec=spec, task=task)


def state_from_tensors(tensors: Tensors, *, spec: AdapterSpec, task: TaskSpec) -> LoraState:
    """Build a LoraState from all its tensors by name.

    Raises:
        AdapterMismatch: A tensor is missing, unknown, of another shape, or not finite.
    """
    shapes = tensor_shapes(spec, task)
    missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or extra:
        raise AdapterMismatch(
            f"the adapter does not cover its targets: {_first(missing)} missing, "
            f"{_first(extra)} unknown; use the adapter of this campaign"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise AdapterMismatch(
                f"tensor {name!r} has shape {tensors[name].shape}, expected {shape}; "
                "use the adapter of this campaign"
            )
        if not np.isfinite(tensors[name]).all():
            raise AdapterMismatch(
                f"tensor {name!r} holds inf or NaN; go back to an earlier adapter"
            )
    ready = {name: np.asarray(tensors[name], dtype=np.float32) for name in shapes}
    scaling = spec.alpha / spec.rank
    return LoraState(
        pairs={
            module: LoraPair(a=ready[module + LORA_A], b=ready[module + LORA_B], scaling=scaling)
            for module in sorted(spec.modules or {})
        },
        head={n.removeprefix(HEAD): t for n, t in ready.items() if n.startswith(HEAD)},
    )


def to_files(state: LoraState, *, spec: AdapterSpec, task: TaskSpec, base_name: str) -> Files:
    """Return the adapter's files by name; equal states give equal bytes.

    Args:
        state: Every tensor of the adapter.
        spec: The locked adapter.
        task: What the logits mean.
        base_name: Logical name of the base model, as the campaign writes it.

    Raises:
        AdapterMismatch: The state does not fit ``spec`` and ``task``.
    """
    tensors = state_from_tensors(state.tensors(), spec=spec, task=task).tensors()
    pairs = {_peft_name(n): t for n, t in tensors.items() if not n.startswith(HEAD)}
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    files = {
        ADAPTER_FILE: encode_tensors(pairs),
        ADAPTER_CONFIG: _json(_peft_config(spec, task, base_name)),
        TASK_FILE: _json(_task_config(task)),
    }
    if head:
        files[HEAD_FILE] = encode_tensors(head)
    return files


def from_files(files: Mapping[str, bytes], *, spec: AdapterSpec, task: TaskSpec) -> LoraState:
    """Read an adapter back, strictly.

    Raises:
        AdapterMismatch: A file or tensor is missing, unknown or malformed, or a setting differs.
    """
    names = {ADAPTER_FILE, ADAPTER_CONFIG, TASK_FILE}
    if task.kind == "classification":
        names.add(HEAD_FILE)
    if set(files) != names:
        raise AdapterMismatch(
            f"the adapter has files {sorted(files)}, expected {sorted(names)}; fetch it again"
        )
    config = _read_json(files, ADAPTER_CONFIG)
    base_name = str(config.get("base_model_name_or_path", ""))
    _require_same(config, _peft_config(spec, task, base_name), ADAPTER_CONFIG)
    _require_same(_read_json(files, TASK_FILE), _task_config(task), TASK_FILE)
    tensors = {_state_name(n): t for n, t in _read_tensors(files, ADAPTER_FILE).items()}
    if HEAD_FILE in files:
        tensors.update({HEAD + n: t for n, t in _read_tensors(files, HEAD_FILE).items()})
    return state_from_tensors(tensors, spec=spec, task=task)


def adapter_sha256(files: Mapping[str, bytes]) -> str:
    """Return the content hash of an adapter: of the names and bytes of all its files."""
    return files_sha256({name: sha256_hex(data) for name, data in files.items()})


def _peft_config(spec: AdapterSpec, task: TaskSpec, base_name: str) -> dict[str, Any]:
    return {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "target_modules": sorted(spec.modules or {}),
        "task_type": "FEATURE_EXTRACTION" if task.kind == "classification" else "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _task_config(task: TaskSpec) -> dict[str, Any]:
    return {
        "labels": list(task.labels),
        "max_tokens": task.max_tokens,
        "pooling": POOLING if task.kind == "classification" else None,
        "target_column": task.target,
        "task": task.kind,
        "text_column": task.text,
    }


def _peft_name(name: str) -> str:
    return f"{PEFT_PREFIX}{name}.weight"


def _state_name(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX).removesuffix(".weight")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise AdapterMismatch(f"{name} is not JSON; fetch the adapter again") from error
    if not isinstance(value, dict):
        raise AdapterMismatch(f"{name} is not a JSON object; fetch the adapter again")
    return value


def _read_tensors(files: Mapping[str, bytes], name: str) -> dict[str, Array]:
    try:
        return decode_tensors(files[name], limits=PayloadLimits(max_bytes=len(files[name])))
    except UpdateRejected as error:
        raise AdapterMismatch(
            f"{name} is not what an adapter holds ({error.reason}: {error}); fetch it again"
        ) from error


def _require_same(found: dict[str, Any], expected: dict[str, Any], file: str) -> None:
    keys = found.keys() | expected.keys()
    differing = sorted(k for k in keys if found.get(k) != expected.get(k))
    if differing:
        raise AdapterMismatch(
            f"{file} differs from the campaign in {', '.join(differing)}; "
            "use the adapter of this campaign"
        )


def _first(names: list[str]) -> str:
    return f"{len(names)} ({names[0]!r} first)" if names else "none"
