"""Per-unit gradients of linear layers, captured in the backward pass.

While a Capture is open, the linear layers that hold trained tensors compute through an own
autograd function. Its backward pass sees the layer's inputs and the gradient of its outputs, row
by row, and multiplies them per unit; PyTorch itself would sum over all rows at once. The
multiplication is the one that PyTorch would do, so it costs the same arithmetic. Capturing in
backward and adding keeps a layer right that is used twice or recomputed by gradient checkpointing.
A trained tensor anywhere else (embedding, convolution, layer norm, DoRA, tied) would leave
unclipped, so it is refused by name before any row is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fl_core.errors import TrainingError
from fl_core.training.trainee import Trainee

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Layer:
    """A linear module and the names under which its trained tensors travel."""

    module: nn.Linear
    weight: str | None
    bias: str | None


class Capture:
    """Gradients per unit of all trained tensors, while the ``with`` block is open.

    Args:
        trainee: The model.
        n_rows: Rows of every forward pass; a layer that sees another first dimension mixes rows.
        n_units: Units that these rows belong to, each with equally many, side by side; left out,
            every row is a unit.

    Raises:
        TrainingError: A trained tensor is not the weight or bias of exactly one linear layer.
    """

    def __init__(self, trainee: Trainee, *, n_rows: int, n_units: int | None = None) -> None:
        self._layers = _covered_layers(trainee)
        self._n_rows = n_rows
        self._n_units = n_rows if n_units is None else n_units
        self._gradients: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        for layer in self._layers:
            # An attribute of the instance hides the class's method until it is deleted again.
            layer.module.forward = _captured_forward(layer, self._add)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self._layers:
            del layer.module.forward

    def take(self) -> dict[str, Tensor]:
        """Return what was captured since the last call, ``(n_units, *shape)`` by name.

        Several backward passes add up, at least in float32 whatever the layers compute in.
        """
        taken, self._gradients = self._gradients, {}
        return taken

    def _add(self, layer: _Layer, inputs: Tensor, gradient: Tensor) -> None:
        if inputs.dim() == 1 or len(inputs) != self._n_rows:
            raise TrainingError(
                f"layer of {layer.weight or layer.bias!r} sees a first dimension of "
                f"{len(inputs)} in a batch of {self._n_rows} rows, so rows cannot be told apart; "
                "keep the rows in the first dimension"
            )
        rows = _exact(inputs.detach().reshape(self._n_units, -1, inputs.shape[-1]))
        slopes = _exact(gradient.reshape(self._n_units, -1, gradient.shape[-1]))
        if layer.weight is not None:
            self._put(layer.weight, torch.bmm(slopes.transpose(1, 2), rows))
        if layer.bias is not None:
            self._put(layer.bias, slopes.sum(dim=1))

    def _put(self, name: str, gradient: Tensor) -> None:
        earlier = self._gradients.get(name)
        self._gradients[name] = gradient if earlier is None else earlier + gradient


class _CapturedLinear(torch.autograd.Function):  # type: ignore[misc]  # torch is Any to mypy
    """A linear map whose backward pass hands inputs and output gradients to a sink."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, sink: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.sink = sink
        return F.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is Any to mypy
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.sink(inputs, gradient)
        return (gradient @ weight if ctx.needs_input_grad[0] else None), None, None, None


def _exact(tensor: Tensor) -> Tensor:
    # Norms and sums of bfloat16 would carry its three digits into the clipping.
    return tensor.float() if tensor.dtype in {torch.bfloat16, torch.float16} else tensor


def _captured_forward(
    layer: _Layer, add: Callable[[_Layer, Tensor, Tensor], None]
) -> Callable[[Tensor], Tensor]:
    def sink(inputs: Tensor, gradient: Tensor) -> None:
        add(layer, inputs, gradient)

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = _CapturedLinear.apply(inputs, layer.module.weight, layer.module.bias, sink)
        return output

    return forward


def _covered_layers(trainee: Trainee) -> list[_Layer]:
    names = {id(p): name for name, p in trainee.parameters.items()}
    owners: dict[str, list[tuple[str, nn.Module]]] = {name: [] for name in trainee.parameters}
    strays: list[str] = []
    for path, module in trainee.module.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            if id(parameter) in names:
                owners[names[id(parameter)]].append((f"{path}.{local}".lstrip("."), module))
            elif parameter.requires_grad:
                strays.append(f"{path}.{local}".lstrip("."))
    if strays:
        raise TrainingError(
            f"parameter {min(strays)!r} asks for a gradient but is not trained; freeze it"
        )
    return _layers(owners)


def _layers(owners: Mapping[str, list[tuple[str, nn.Module]]]) -> list[_Layer]:
    by_module: dict[int, tuple[nn.Linear, dict[str, str]]] = {}
    uncovered: list[str] = []
    for name, holders in sorted(owners.items()):
        if len(holders) != 1:
            places = " and ".join(place for place, _ in holders) or "no module"
            uncovered.append(f"{name} (of {places})")
        elif not _is_plain_linear(holders[0][1]):
            uncovered.append(f"{name} (of a {type(holders[0][1]).__name__})")
        else:
            place, module = holders[0]
            local = place.rpartition(".")[2]
            by_module.setdefault(id(module), (module, {}))[1][local] = name
    if uncovered:
        shown = ", ".join(uncovered[:_SHOWN]) + (" ..." if len(uncovered) > _SHOWN else "")
        raise TrainingError(
            f"clipping does not cover {len(uncovered)} trained tensors: {shown}; freeze them: "
            "each must be weight or bias of exactly one linear module"
        )
    return [
        _Layer(module=module, weight=found.get("weight"), bias=found.get("bias"))
        for module, found in by_module.values()
    ]


def _is_plain_linear(module: nn.Module) -> bool:
    # A subclass, or a library that wraps forward on the instance, may compute something else.
    return type(module).forward is nn.Linear.forward and "forward" not in vars(module)
