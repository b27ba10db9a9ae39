"""What one site may see and write of the store.

Written as whole keys, never as prefixes with wildcards: a wildcard that spans slashes lets a site
write where a plan is going to be, or read beside its own folder. Names of other sites' objects are
closed too, because they tell who has answered when.
"""

import re
from typing import Literal

from fl_core.artifacts import keys

Kind = Literal["payload", "document", "copy"]
"""What a site writes: tensors of an update, a small signed document, a witness' copy."""

_NAME = "[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?"
_ROUND = f"campaigns/{_NAME}/rounds/[0-9]{{4}}"
_OF_COORDINATOR = tuple(
    re.compile(pattern)
    for pattern in (
        f"campaigns/{_NAME}/campaign\\.json",
        f"campaigns/{_NAME}/stops/[a-z0-9-]{{1,64}}\\.json",
        f"campaigns/{_NAME}/adapters/[0-9a-f]{{64}}/[a-z_]+\\.(json|safetensors)",
        f"{_ROUND}/(plan|collected|outcome)\\.json",
        "rosters/[0-9]{6}\\.json",
        "ledger/clients/(identity|entries/[0-9]{6,9})\\.json",
    )
)
_UPDATE = re.compile(
    f"campaigns/(?P<campaign>{_NAME})/rounds/(?P<round>[0-9]{{4}})/updates/(?P<site>{_NAME})/"
    r"(?P<file>payload\.safetensors|budget\.json|manifest\.json|declined\.json)"
)
_COPY = re.compile(
    f"witness/(?P<site>{_NAME})/[a-z0-9-]{{1,80}}/[A-Za-z0-9_-]{{1,80}}/[0-9]{{6,9}}\\.json"
)


def is_readable(key: str, *, site: str) -> bool:
    """Say whether a site may read an object: what the coordinator wrote for all, and its own."""
    if any(pattern.fullmatch(key) for pattern in _OF_COORDINATOR):
        return True
    return writable_kind(key, site=site) is not None


def writable_kind(key: str, *, site: str) -> Kind | None:
    """Return what a site would write under a key, or None where it may write nothing."""
    update = _UPDATE.fullmatch(key)
    if update is not None and update["site"] == site:
        return "payload" if update["file"] == keys.PAYLOAD else "document"
    copy = _COPY.fullmatch(key)
    return "copy" if copy is not None and copy["site"] == site else None


def round_of_update(key: str) -> tuple[str, int] | None:
    """Return campaign and round that an update's object belongs to, or None if it is none."""
    match = _UPDATE.fullmatch(key)
    return None if match is None else (match["campaign"], int(match["round"]))
