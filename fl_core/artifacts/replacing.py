"""Replacing a file in one step: whoever reads it finds the old bytes or the new ones, whole.

The new bytes are on the disk before they take the name, so a power cut leaves no empty file where a
key or a config was.
"""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file beside its name, sync it and move it there; its folder is made when absent.

    Args:
        path: The file; replaced when there.
        data: Its bytes.
        mode: Its permissions from the first byte on, less what the process' umask takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
