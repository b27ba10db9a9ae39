"""A site's local training of one round, and the check that what was saved is what was trained.

Training starts from the global adapter and returns the difference. The saved adapter is then
loaded again by plain peft and must give the logits of the trained model: adapters that were saved
under other names, or not at all, have loaded without an error elsewhere (Opacus issue 820).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_core.adapters.pair import LORA_A, LORA_B
from fl_core.campaign.specs import AdapterSpec, TaskSpec, TrainingSpec
from fl_core.data.prompts import IGNORED, EncodedRows
from fl_core.errors import AdapterMismatch
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import AdaptedModel, adapter_logits, load_plain
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.batches import columns_of
from fl_core.training.steps import StepsTaken, run_steps
from fl_core.training.trainee import trainee_of
from fl_core.updates.update import Array

PUBLIC_PROBES = (
    "the pump is leaking oil at the rear seal",
    "replace the worn filter and check the pressure",
    "left track motor makes a loud noise",
    "no fault found after inspection",
)
# Below this size of B x A, float32 may round the adapter's effect on the probes away.
_VISIBLE_CHANGE = 1e-3
_SAME_LOGITS = 1e-4


@dataclass(frozen=True, slots=True)
class LocalSetting:
    """Public numbers of one site's training.

    Attributes:
        training: Of the campaign.
        divisor: Public batch size of this site.
        noise: Built by the site from the frozen campaign; None is no noise on gradients.
        max_rows_per_unit: Public limit of the rows of one unit.
        clip_norm: Where a moving clip norm goes on; None starts at the plan's own.
    """

    training: TrainingSpec
    divisor: float
    noise: NoisePlan | None
    max_rows_per_unit: int = 1
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What one round of training gives.

    Attributes:
        delta: After minus before of every trained tensor by its name in LoraState, float32; of
            what this round trains only.
        steps: What private steps leave; None without noise.
    """

    delta: dict[str, Array]
    steps: StepsTaken | None


def train_round(
    model: AdaptedModel, rows: EncodedRows, *, setting: LocalSetting, stream: NoiseStream
) -> LocalRound:
    """Train the model in place and return its delta.

    Against everybody who sees the delta, with noise it is (one round of) RecordDp for every unit
    of ``rows`` under add/remove; assumed is that ``stream`` is a secret CSPRNG.

    Args:
        model: With the global adapter loaded; afterwards it holds the trained one.
        rows: The site's encoded rows; where they name no units, every row is one.
        setting: Public numbers.
        stream: Noise, Poisson coins and, without noise, the shuffling.

    Raises:
        TrainingError: The plan is not one for gradients or has other steps, a trained tensor is
            not covered by the clipping, or, without noise, there are no rows.
        LossNotFinite: Without noise only: the loss became inf or NaN.
    """
    trainee = trainee_of(model)
    before = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    steps = run_steps(
        trainee,
        columns_of(rows, max_rows_per_unit=setting.max_rows_per_unit),
        training=setting.training,
        divisor=setting.divisor,
        noise=setting.noise,
        stream=stream,
        probe=probe_columns(rows),
        clip_norm=setting.clip_norm,
    )
    delta = {
        name: (parameter.detach() - before[name]).numpy()
        for name, parameter in sorted(trainee.parameters.items())
    }
    return LocalRound(delta, steps)


def verify_reload(  # noqa: PLR0913  frozen contents beside what is checked against them
    model: AdaptedModel,
    files: Mapping[str, bytes],
    *,
    base: LoadedBase,
    spec: AdapterSpec,
    task: TaskSpec,
    probe_texts: tuple[str, ...] = PUBLIC_PROBES,
) -> None:
    """Check that an adapter's files, loaded by plain peft, are the model that was trained.

    Only public texts are used, so a failure of this check tells nothing about a row (SOUNDNESS,
    rule 18). The base model's weights are shared, the files are written and read back.

    Args:
        model: The trained model.
        files: From ``adapters.peft_layout.to_files``.
        base: The base model that ``model`` was attached to.
        spec: The locked adapter.
        task: What the logits mean.
        probe_texts: Public texts.

    Raises:
        AdapterMismatch: Logits differ, or a trained adapter changes nothing.
    """
    encoded = base.tokenizer(
        list(probe_texts),
        padding="max_length",
        truncation=True,
        max_length=task.max_tokens,
        return_tensors="pt",
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with tempfile.TemporaryDirectory(prefix="fedloom-reload-") as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        backbone, head = load_plain(base, Path(name), task)
    with torch.inference_mode():
        trained = model(ids, mask)
        reloaded = adapter_logits(backbone, head, ids, mask)
        _require_equal_logits(trained, reloaded)
        if _largest_change(model, spec) > _VISIBLE_CHANGE:
            _require_change(base.model, backbone, ids, mask)


def _require_equal_logits(trained: Tensor, reloaded: Tensor) -> None:
    if trained.shape != reloaded.shape:
        raise AdapterMismatch(
            f"the reloaded adapter gives logits of shape {tuple(reloaded.shape)}, "
            f"trained were {tuple(trained.shape)}; the update is not sent"
        )
    scale = float(trained.abs().nan_to_num(0.0, posinf=0.0).max())
    if not torch.allclose(
        trained, reloaded, rtol=0.0, atol=_SAME_LOGITS * max(scale, 1.0), equal_nan=True
    ):
        raise AdapterMismatch(
            "the reloaded adapter gives other logits on the public probe texts than the trained "
            "model; the update is not sent"
        )


def _require_change(plain: nn.Module, adapted: nn.Module, ids: Tensor, mask: Tensor) -> None:
    with_adapter, without = (m(input_ids=ids, attention_mask=mask)[0] for m in (adapted, plain))
    if torch.equal(with_adapter, without):
        raise AdapterMismatch(
            "the reloaded adapter changes nothing on the public probe texts although its B "
            "tensors are not zero; the update is not sent"
        )


def _largest_change(model: AdaptedModel, spec: AdapterSpec) -> float:
    tensors = model.adapter_parameters()
    changes = [
        torch.linalg.matrix_norm(tensors[n.removesuffix(LORA_A) + LORA_B] @ tensors[n])
        for n in tensors
        if n.endswith(LORA_A)
    ]
    return float(max(changes)) * spec.alpha / spec.rank


def probe_columns(rows: EncodedRows) -> dict[str, Tensor]:
    """Return two public rows of the width and kind of ``rows``, for ``require_private``."""
    width = rows.input_ids.shape[1]
    # Small token ids exist in every vocabulary; the two rows only have to differ.
    rising = torch.arange(width) % 3 + 1
    ids = torch.stack([rising, rising.flip(0)])
    # Only the second is padded: whether any row of a batch is can decide how all are computed.
    mask = torch.ones_like(ids)
    mask[1, (width + 1) // 2 :] = 0
    labels = torch.zeros(2, dtype=torch.int64)
    if rows.labels.ndim > 1:
        labels = torch.where(mask == 1, ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
