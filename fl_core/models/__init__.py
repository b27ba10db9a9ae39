"""Base models and the bridge between PEFT modules and named tensors."""
