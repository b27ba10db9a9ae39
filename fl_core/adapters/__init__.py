"""LoRA algebra in numpy: no model, no torch."""
