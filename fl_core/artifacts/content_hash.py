"""SHA-256 of a folder's files, for base models, suites and adapters.

The hash covers the relative names and the bytes of the files that count, in sorted order. Hidden
files and Python files of a package that ships a model are left out, so that a model copied from
its package has the hash it has inside it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fl_core.artifacts.documents import sha256_hex
from fl_core.errors import ModelMismatch

IGNORED_SUFFIXES = {".py", ".pyc"}
_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of one file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_sha256(hashes: Mapping[str, str]) -> str:
    """Return one hash for a set of files.

    Args:
        hashes: SHA-256 of each file by relative name, ``/`` between folders.
    """
    return sha256_hex("".join(f"{hashes[n]}  {n}\n" for n in sorted(hashes)).encode())


def folder_sha256(path: Path) -> str:
    """Return the content hash of a model folder, or of a single file.

    Raises:
        ModelMismatch: There is nothing at ``path``.
    """
    if path.is_file():
        return files_sha256({path.name: file_sha256(path)})
    if not path.is_dir():
        raise ModelMismatch(f"no file or folder at {path}")
    names = {
        str(p.relative_to(path)): p
        for p in path.rglob("*")
        if p.is_file()
        and p.suffix not in IGNORED_SUFFIXES
        and not any(
            part.startswith(".") or part == "__pycache__" for part in p.relative_to(path).parts
        )
    }
    return files_sha256({name: file_sha256(p) for name, p in names.items()})
