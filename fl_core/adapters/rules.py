"""Which tensors of an adapter a round trains; the rest are the same public tensors at every site.

What is frozen is a public constant, or what earlier rounds released, so freezing it costs no
privacy and takes its noise away (SOUNDNESS, rule 28). With one factor frozen the mean of the
products is the product of the means, so plain averaging is exact.

Source: Sun et al. 2024 (FFA-LoRA), section 4; Chen et al. 2024 (RoLoRA), Algorithm 1.
"""

from fl_core.adapters.pair import HEAD, LORA_A
from fl_core.campaign.guarantees import GroupBounds, RecordDp
from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.errors import IncompatibleParts


def is_trained(name: str, spec: AdapterSpec, *, round_number: int) -> bool:
    """Say whether a round trains the tensor ``name`` of LoraState.

    Args:
        name: ``<module>.lora_A``, ``<module>.lora_B`` or ``head.*``.
        spec: The adapter, for its rule.
        round_number: From 1; only ``rolora`` looks at it: B in odd rounds, A in even ones.
    """
    if name.startswith(HEAD):
        return True
    is_a = name.endswith(LORA_A)
    match spec.rule:
        case "lora":
            return True
        case "ffa_lora":
            return not is_a
        case "rolora":
            return is_a == (round_number % 2 == 0)
        case "head":
            return False


def kinds_of_rounds(spec: AdapterSpec) -> tuple[int, ...]:
    """Return the first round of every kind: what one trains, all later ones of its kind train."""
    return (1, 2) if spec.rule == "rolora" else (1,)


def require_rule_fits(spec: AdapterSpec, task: TaskSpec) -> None:
    """Refuse a rule that leaves nothing to train.

    Raises:
        IncompatibleParts: ``head`` for a task without a head.
    """
    if spec.rule == "head" and task.kind != "classification":
        raise IncompatibleParts(
            f"adapter.rule 'head' trains the head alone, and task.kind {task.kind!r} has none; "
            "use 'lora', 'ffa_lora' or 'rolora'"
        )


def require_bounds_fit(spec: AdapterSpec, task: TaskSpec, record: RecordDp | None) -> None:
    """Refuse bounds for two groups of tensors where only one of them is trained.

    Raises:
        IncompatibleParts: ``clip_norm`` has a bound for pairs or a head that is not trained.
    """
    if record is None or not isinstance(record.clip_norm, GroupBounds):
        return
    missing = "head" if task.kind != "classification" else "pairs" if spec.rule == "head" else None
    if missing is not None:
        raise IncompatibleParts(
            f"privacy.record.clip_norm has bounds for adapter and head, and no {missing} are "
            "trained; give one number, since the noise would pay for both"
        )
