"""Documents: frozen pydantic models stored as canonical JSON.

Canonical means sorted keys, no blanks, no NaN, and fields that are None left out. So a document
has one byte form, its SHA-256 names it, and a later version of fedloom may add an optional field
without changing the hash of what was stored before.
"""

import hashlib
import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_core.artifacts.store import ObjectStore
from fl_core.errors import ObjectCorrupt

# Most that is read of a document where nothing tighter is said: whoever wrote it may be hostile.
LONGEST_DOCUMENT = 64 << 20
_SHOWN_FIELDS, _SHOWN_CHARS = 8, 100


class Document(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


D = TypeVar("D", bound=BaseModel)


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def to_bytes(document: BaseModel, *, leave_out: frozenset[str] = frozenset()) -> bytes:
    """Return the canonical JSON of a document, UTF-8, without the fields ``leave_out``."""
    plain = document.model_dump(mode="json", exclude_none=True, exclude=set(leave_out))
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def from_bytes(model: type[D], data: bytes, *, what: str) -> D:
    """Read a document back.

    Args:
        model: The document's type.
        data: JSON, UTF-8.
        what: The key or path, named in the error.

    Raises:
        ObjectCorrupt: Not JSON, or not a document of that type; the text holds no field values.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ObjectCorrupt(f"{what} is not a valid {model.__name__}: {_fields(error)}") from error


def _fields(error: ValidationError) -> str:
    # Names of unknown fields are another machine's choice: few, short, and on one line.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    names = [".".join(map(str, e["loc"])) or e["type"] for e in found[:_SHOWN_FIELDS]]
    shown = ", ".join(repr(name[:_SHOWN_CHARS])[1:-1] for name in names)
    more = f" and {len(found) - len(names)} more" if len(found) > len(names) else ""
    return shown + more


def document_sha256(document: BaseModel) -> str:
    """Return the SHA-256 of a document's canonical JSON."""
    return sha256_hex(to_bytes(document))


def read_document(
    store: ObjectStore, key: str, model: type[D], *, max_bytes: int = LONGEST_DOCUMENT
) -> D:
    """Read a stored document; ``max_bytes`` as for ``ObjectStore.get``, and never unbounded.

    Raises:
        ObjectMissing: No object under ``key``.
        ObjectCorrupt: The object is not a document of that type, or is too long.
    """
    return from_bytes(model, store.get(key, max_bytes=max_bytes), what=key)


def write_document(store: ObjectStore, key: str, document: D) -> D:
    """Write a document once and return what is stored, which may be another writer's."""
    data = to_bytes(document)
    if store.put_once(key, data):
        return document
    return read_document(store, key, type(document))
