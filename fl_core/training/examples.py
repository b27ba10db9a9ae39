"""Any sequence of examples as columns of tensors, for models that are not ours.

An example is a mapping of tensors of which one is called ``labels``; a transformers tokenizer with
padding, or a torch dataset, gives such mappings. All examples must have the same shapes, since a
batch is a plain stack.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fl_core.errors import CampaignError
from fl_core.models.losses import row_losses
from fl_core.training.batches import Columns

LABELS = "labels"


def columns_of_examples(examples: Sequence[Mapping[str, Tensor]]) -> Columns:
    """Stack examples into columns, with a dummy of zeros; every example is a unit.

    Raises:
        CampaignError: No examples, no ``labels``, or names or shapes that differ; names the field.
    """
    if len(examples) == 0:
        raise CampaignError("the dataset has no examples; a client needs at least one")
    first = examples[0]
    if not isinstance(first, Mapping):
        raise CampaignError(
            f"an example is a {type(first).__name__}, expected a mapping of tensors by the names "
            f"of the model's arguments, with {LABELS!r}",
            hint='such as {"input": x, "labels": y}',
        )
    if LABELS not in first:
        raise CampaignError(
            f"examples have the fields {sorted(first)}, expected {LABELS!r} among them"
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(first):
        column = [torch.as_tensor(example[name]) for example in examples if name in example]
        if len(column) != len(examples) or len({c.shape for c in column}) != 1:
            raise CampaignError(
                f"field {name!r} is missing in some examples or has several shapes; pad all "
                "examples to one length"
            )
        tensors[name] = torch.stack(column)
    return Columns(
        tensors=tensors,
        dummy={name: torch.zeros_like(t[:1]) for name, t in tensors.items()},
        starts=np.arange(len(examples) + 1, dtype=np.intp),
    )


def public_probe(columns: Columns) -> dict[str, Tensor]:
    """Return two rows of ones, in the second every other entry zero; labels are zero.

    They depend on shapes and types only, and token 1 is in every vocabulary.
    """
    probe: dict[str, Tensor] = {}
    for name, dummy in columns.dummy.items():
        one = torch.zeros_like(dummy) if name == LABELS else torch.ones_like(dummy)
        two = one.repeat(2, *[1] * (dummy.dim() - 1))
        two.view(2, -1)[1, 1::2] = 0
        probe[name] = two
    return probe


def module_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross entropy of every row for a module that gives logits.

    The module takes every field but ``labels`` by name and returns a tensor, or an object with
    ``logits`` as transformers models do.
    """
    output = model(**{name: column for name, column in batch.items() if name != LABELS})
    return row_losses(getattr(output, "logits", output), batch[LABELS])
