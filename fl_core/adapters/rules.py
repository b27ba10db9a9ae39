"""Which tensors of an adapter a round trains; the rest are the same public tensors at every site.

What is frozen is a public constant, or what earlier rounds released, so freezing it costs no
privacy and takes its noise away (SOUNDNESS, rule 28). With one factor frozen the mean of the
products is the product of the means, so plain averaging is exact.

Source: Sun et al. 2024 (FFA-LoRA), section 4; Chen et al. 2024 (RoLoRA), Algorithm 1.
"""

from fl_core.adapters.pair import HEAD, LORA_A
from fl_core.campaign.specs import AdapterSpec


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
