"""Named tensors of an adapter.

A LoRA pair is A ``(r, d_in)`` and B ``(d_out, r)``; the weight change is ``scaling * B @ A`` with
``scaling = alpha / r``. The state of an adapter is its pairs plus the tensors of the head, if the
task has one. Everything is float32 and iterated in sorted name order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fl_core.updates.update import Array, Tensors

LORA_A = ".lora_A"
LORA_B = ".lora_B"
HEAD = "head."


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One low-rank weight change.

    Attributes:
        a: ``(r, d_in)`` float32.
        b: ``(d_out, r)`` float32.
        scaling: alpha / r.
    """

    a: Array
    b: Array
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraState:
    """A whole adapter: pairs by module name, head tensors by their name after ``head.``."""

    pairs: Mapping[str, LoraPair]
    head: Mapping[str, Array] = field(default_factory=dict)

    def tensors(self) -> dict[str, Array]:
        """Return all tensors by name, sorted.

        Names are ``<module>.lora_A``, ``<module>.lora_B``, ``head.<name>``.
        """
        named: dict[str, Array] = {}
        for module, pair in self.pairs.items():
            named[module + LORA_A] = pair.a
            named[module + LORA_B] = pair.b
        named.update({HEAD + name: tensor for name, tensor in self.head.items()})
        return dict(sorted(named.items()))

    def replaced(self, tensors: Tensors) -> "LoraState":
        """Return a copy in which the named tensors are exchanged; other names are kept."""
        pairs = {
            module: LoraPair(
                a=tensors.get(module + LORA_A, pair.a),
                b=tensors.get(module + LORA_B, pair.b),
                scaling=pair.scaling,
            )
            for module, pair in self.pairs.items()
        }
        head = {name: tensors.get(HEAD + name, tensor) for name, tensor in self.head.items()}
        return LoraState(pairs=pairs, head=head)

    def plus(self, delta: Tensors) -> "LoraState":
        """Return this state with a delta added, summed in float64; names in no delta are kept."""
        own = self.tensors()
        moved = {
            name: (own[name].astype(np.float64) + tensor).astype(np.float32)
            for name, tensor in delta.items()
        }
        return self.replaced(moved)
