"""One outside system or one core call per module."""
