"""How tensors become bytes: one codec per file."""

from fl_core.codecs import float32 as _float32  # noqa: F401  registration
