"""A base model with an adapter: attach, load, read back.

peft supplies the LoRA layers; names, strictness and the classification head are ours, since peft
loads a state that covers only some targets without an error. Every attachment works on its own
tree of modules that *shares* the base model's weights: the base stays as it was loaded, and a
second, fresh model for a reload check costs milliseconds and no memory.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn

from fl_core.adapters.pair import HEAD, LORA_A, LORA_B, LoraState
from fl_core.adapters.peft_layout import state_from_tensors
from fl_core.adapters.rules import is_trained
from fl_core.artifacts.keys import HEAD_FILE
from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.errors import AdapterMismatch
from fl_core.models.loading import LoadedBase
from fl_core.updates.update import Array

_PEFT_ADAPTER = "default"


class AdaptedModel(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """A frozen base model with trainable LoRA pairs and, for classification, a linear head.

    It stays in evaluation mode, also while it is trained: dropout and batch statistics would make
    one row's gradient depend on more than that row and public numbers.

    Attributes:
        backbone: The base model with LoRA layers.
        head: ``(n_labels, head_inputs)`` linear layer, or None for a causal LM.
        spec: The locked adapter.
        task: What the logits mean.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Linear | None, *, spec: AdapterSpec, task: TaskSpec
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.spec = spec
        self.task = task

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits: ``(B, n_labels)``, or ``(B, T, vocabulary)`` for a causal LM."""
        return adapter_logits(self.backbone, self.head, input_ids, attention_mask)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return every tensor of the adapter by its name in LoraState, sorted."""
        named: dict[str, nn.Parameter] = {}
        for module in self.spec.modules or {}:
            layer = self.backbone.get_submodule(module)
            named[module + LORA_A] = layer.lora_A[_PEFT_ADAPTER].weight
            named[module + LORA_B] = layer.lora_B[_PEFT_ADAPTER].weight
        if self.head is not None:
            named.update({HEAD + name: p for name, p in self.head.named_parameters()})
        return dict(sorted(named.items()))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the tensors that training changes in the round that was last opened."""
        return {n: p for n, p in self.adapter_parameters().items() if p.requires_grad}


def attach(base: LoadedBase, spec: AdapterSpec, task: TaskSpec, state: LoraState) -> AdaptedModel:
    """Put an adapter on a base model.

    Attach once per session; in every round call ``open_for_round`` and ``load_state``. The base is
    not changed.

    Raises:
        AdapterMismatch: The base model has not the modules of ``spec``, or ``state`` does not
            cover every target with the right shapes and nothing else.
    """
    _require_modules(base.model, spec)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=sorted(spec.modules or {}),
        lora_dropout=0.0,
        bias="none",
    )
    backbone = inject_adapter_in_model(config, shared_copy(base.model), _PEFT_ADAPTER)
    head = None
    if task.kind == "classification":
        head = nn.Linear(int(spec.head_inputs or 0), len(task.labels), dtype=torch.float32)
    model = AdaptedModel(backbone, head, spec=spec, task=task)
    model.eval().requires_grad_(requires_grad=False)
    found = {n for n, m in backbone.named_modules() if hasattr(m, "lora_A")}
    if found != set(spec.modules or {}):
        raise AdapterMismatch(
            f"peft adapted {len(found)} modules, the campaign names {len(spec.modules or {})}; "
            "lock the campaign again with this base model"
        )
    open_for_round(model, 1)
    load_state(model, state)
    return model


def open_for_round(model: AdaptedModel, round_number: int) -> None:
    """Let gradients reach the tensors that a round trains, and no others."""
    for name, parameter in model.adapter_parameters().items():
        trained = is_trained(name, model.spec, round_number=round_number)
        parameter.requires_grad_(requires_grad=trained)


def read_state(model: AdaptedModel) -> LoraState:
    """Return a copy of the model's adapter as numpy arrays.

    Raises:
        AdapterMismatch: A tensor holds inf or NaN.
    """
    return state_from_tensors(read_tensors(model), spec=model.spec, task=model.task)


def read_tensors(model: AdaptedModel) -> dict[str, Array]:
    """Return copies of all adapter tensors by name, without looking at their values."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in model.adapter_parameters().items()
    }


def load_state(model: AdaptedModel, state: LoraState) -> None:
    """Overwrite the model's adapter, strictly.

    Raises:
        AdapterMismatch: The state does not cover every target, or holds anything else.
    """
    tensors = state_from_tensors(state.tensors(), spec=model.spec, task=model.task).tensors()
    scalings = {pair.scaling for pair in state.pairs.values()}
    if scalings != {model.spec.alpha / model.spec.rank}:
        raise AdapterMismatch(
            f"the adapter is scaled by {sorted(scalings)}, expected alpha / rank = "
            f"{model.spec.alpha / model.spec.rank}; use the adapter of this campaign"
        )
    with torch.no_grad():
        for name, parameter in model.adapter_parameters().items():
            parameter.copy_(torch.from_numpy(tensors[name]))


def load_plain(
    base: LoadedBase, folder: Path, task: TaskSpec
) -> tuple[nn.Module, nn.Linear | None]:
    """Load a saved adapter the way anyone would: plain peft, and the head beside it.

    Args:
        base: The base model; it is shared, not read from disk again.
        folder: Files of ``adapters.peft_layout``.
        task: Classification has a head.

    Returns:
        The encoder or causal LM, and the head or None; ``adapter_logits`` takes both.
    """
    backbone = PeftModel.from_pretrained(shared_copy(base.model), folder).eval()
    if task.kind != "classification":
        return backbone, None
    tensors = load_file(folder / HEAD_FILE)
    n_labels, width = tensors["weight"].shape
    head = nn.Linear(width, n_labels)
    head.load_state_dict(tensors, strict=True)
    return backbone, head.eval()


def adapter_logits(
    backbone: nn.Module, head: nn.Linear | None, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Return the logits of an encoder with a head, or of a causal LM.

    The head reads the mean over the attention mask of the last hidden state, layer-normed without
    parameters, so that its inputs have one public scale whatever the base model.
    """
    output = backbone(input_ids=input_ids, attention_mask=attention_mask)
    if head is None:
        logits: Tensor = output.logits
        return logits
    mask = attention_mask[..., None].to(output.last_hidden_state.dtype)
    pooled = (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    scores: Tensor = head(F.layer_norm(pooled, pooled.shape[-1:]))
    return scores


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a new tree of modules over the same parameters and buffers."""
    tensors: Mapping[int, Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(tensors))


def _require_modules(model: nn.Module, spec: AdapterSpec) -> None:
    named = dict(model.named_modules())
    for module, (d_out, d_in) in (spec.modules or {}).items():
        layer = named.get(module)
        if not isinstance(layer, nn.Linear) or (layer.out_features, layer.in_features) != (
            d_out,
            d_in,
        ):
            raise AdapterMismatch(
                f"the base model has no linear module {module!r} of shape ({d_out}, {d_in}); "
                "lock the campaign again with this base model"
            )
