"""What a training loop needs to know of a model: its tensors, and one loss per row.

The loop serves adapted models and, through the facade, any torch module; both are described by
the tensors that travel and by a loss that keeps rows apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fl_core.models.losses import row_losses
from fl_core.models.peft_state import AdaptedModel

Losses = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model in training.

    Attributes:
        module: The whole model.
        parameters: The tensors that are trained, by the name they travel under.
        losses: Maps the model and a batch of B rows to B losses.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    losses: Losses


def trainee_of(model: AdaptedModel) -> Trainee:
    """Return an adapted model as a trainee."""
    return Trainee(
        module=model, parameters=model.trainable_parameters(), losses=adapted_model_losses
    )


def adapted_model_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of every row of ``input_ids``, ``attention_mask`` and ``labels``."""
    return row_losses(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
