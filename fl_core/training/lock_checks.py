"""Whether a campaign's base model can be trained under its guarantee, asked before any site is.

Every site asks the same of its copy at the start of every round and would decline; asked when the
campaign is locked, the answer reaches the person who chose the model.
"""

import math

import numpy as np

from fl_core.adapters.pair import LoraState
from fl_core.adapters.peft_layout import initial_state
from fl_core.adapters.rules import kinds_of_rounds
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import EncodedRows
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import attach, open_for_round
from fl_core.training.local_training import probe_columns
from fl_core.training.model_checks import require_private
from fl_core.training.trainee import trainee_of
from fl_core.updates.update import Array

# Away from the start, where B and head are zero and most gradients vanish; small, so that no
# activation overflows.
_STIR = 0.02


def require_clippable(base: LoadedBase, campaign: Campaign) -> None:
    """Refuse a base model whose rows cannot be clipped apart; only with RecordDp.

    Args:
        base: The campaign's base model; it is not changed.
        campaign: Locked.

    Raises:
        TrainingError: Names the trained tensor that clipping does not cover.
    """
    if campaign.privacy.record is None:
        return
    spec, task = campaign.adapter, campaign.task
    model = attach(base, spec, task, _stirred(initial_state(spec, task)))
    probe = probe_columns(_no_rows(task))
    for round_number in kinds_of_rounds(spec):
        open_for_round(model, round_number)
        require_private(trainee_of(model), probe)


def _stirred(state: LoraState) -> LoraState:
    return state.replaced(
        {name: tensor + _waves(tensor.shape) for name, tensor in state.tensors().items()}
    )


def _waves(shape: tuple[int, ...]) -> Array:
    # The phase grows with the square, so that no row of a matrix is a multiple of another one.
    phases = 0.7 * np.arange(math.prod(shape), dtype=np.float64) ** 2
    return (_STIR * np.cos(phases)).reshape(shape).astype(np.float32)


def _no_rows(task: TaskSpec) -> EncodedRows:
    empty = np.zeros((0, task.max_tokens), dtype=np.int64)
    labels = empty if task.kind == "causal_lm" else np.zeros(0, dtype=np.int64)
    return EncodedRows(empty, empty, labels)
