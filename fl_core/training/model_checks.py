"""Whether a model's units can be clipped apart, asked on public rows before private ones are read.

Whatever per-unit clipping does not cover is refused by name here. A trained tensor outside a plain
linear layer is seen in the module tree (``capture``); what the tree does not show is found by
computing: a gradient that depends on the other rows of its batch, and a gradient that is not what
plain autograd gives, wherever the difference comes from.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from fl_core.adapters.pair import HEAD
from fl_core.campaign.guarantees import GroupBounds
from fl_core.errors import TrainingError
from fl_core.training.batches import MicroBatch, Shape
from fl_core.training.capture import Capture
from fl_core.training.private_training import Gradients, unit_gradients
from fl_core.training.trainee import Trainee

# Equal to the last bit on most machines; libraries may round by where in memory a tensor lies.
_SAME = 1e-4
# Plain autograd adds rows and places up in another order; half precision rounds what it adds up.
_SAME_SUM = 1e-3
_SAME_SUM_HALF = 0.1
_NO_GRADIENT = "None of the inputs have requires_grad=True"


def require_private(trainee: Trainee, probe: Mapping[str, Tensor]) -> None:
    """Refuse a model whose units cannot be clipped apart.

    Args:
        trainee: The model.
        probe: Two public rows, different from each other.

    Raises:
        TrainingError: A trained tensor is not covered, one row's gradient depends on another row
            (batch statistics, in-batch losses), which no clipping can bound, gradients are not
            those of plain autograd, or reentrant checkpointing cuts them off.
    """
    two = {name: column[:2] for name, column in probe.items()}
    twice = {name: column[:1].expand_as(column[:2]) for name, column in probe.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_NO_GRADIENT)
            with Capture(trainee, n_rows=2) as capture:
                beside_another = unit_gradients(trainee, _as_micro(two), capture)
                beside_itself = unit_gradients(trainee, _as_micro(twice), capture)
            plain = _plain_gradients(trainee, two)
    except UserWarning as error:
        raise TrainingError(
            "reentrant gradient checkpointing cuts off the gradients of trained tensors; "
            "checkpoint with use_reentrant=False"
        ) from error
    _require_rows_apart(beside_another, beside_itself)
    _require_plain(trainee, beside_another, plain)


def require_groups(trainee: Trainee, bounds: object) -> None:
    """Refuse two bounds for a model in which one of the two groups is not trained.

    Raises:
        TrainingError: No trained tensor is called ``head.*``, or all are.
    """
    if not isinstance(bounds, GroupBounds):
        return
    n_head = sum(name.startswith(HEAD) for name in trainee.parameters)
    if n_head in {0, len(trainee.parameters)}:
        raise TrainingError(
            f"clip_norm has bounds for adapter and head, and {n_head} of the "
            f"{len(trainee.parameters)} trained tensors are called {HEAD}*; give one number"
        )


def _as_micro(inputs: Mapping[str, Tensor]) -> MicroBatch:
    return MicroBatch(
        inputs=inputs,
        weights=torch.ones(2),
        is_unit=torch.ones(2, dtype=torch.bool),
        shape=Shape(n_units=2, rows_per_unit=1, n_passes=1),
    )


def _plain_gradients(trainee: Trainee, inputs: Mapping[str, Tensor]) -> Gradients:
    trainee.losses(trainee.module, inputs).sum().backward()
    found = {}
    for name, parameter in trainee.parameters.items():
        if parameter.grad is not None:
            found[name] = parameter.grad
        parameter.grad = None
    return found


def _require_rows_apart(one: Gradients, other: Gradients) -> None:
    for name, gradient in one.items():
        if not _is_close(gradient[0], other[name][0], _SAME * _largest(gradient[0])):
            raise TrainingError(
                f"the gradient of {name!r} for one row depends on the other rows of its batch; "
                "remove batch statistics and losses that compare rows"
            )


def _require_plain(trainee: Trainee, captured: Gradients, plain: Gradients) -> None:
    half = {torch.bfloat16, torch.float16}
    is_half = any(p.dtype in half for p in trainee.module.parameters())
    tolerance = _SAME_SUM_HALF if is_half else _SAME_SUM
    for name in sorted(captured.keys() | plain.keys()):
        if (
            name not in captured
            or name not in plain
            # Rows may cancel out, so the largest gradient of a single row sets the scale.
            or not _is_close(
                captured[name].sum(dim=0), plain[name], tolerance * _largest(captured[name])
            )
        ):
            raise TrainingError(
                f"the gradient of {name!r} per row is not what plain autograd gives; "
                "its use in the model is not covered, freeze it"
            )


def _is_close(found: Tensor, expected: Tensor, distance: float) -> bool:
    same: bool = torch.allclose(
        found.double(), expected.double(), rtol=0.0, atol=distance, equal_nan=True
    )
    return same


def _largest(gradient: Tensor) -> float:
    return float(gradient.abs().nan_to_num(0.0, posinf=0.0).max())
