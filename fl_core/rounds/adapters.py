"""Global adapters in the store, in PEFT layout, named by their content.

The hash covers every file, so a reader that recomputes it has the whole adapter or an error.
"""

import math
from collections.abc import Mapping

from fl_core.adapters.pair import LoraState
from fl_core.adapters.peft_layout import (
    adapter_sha256,
    from_files,
    initial_state,
    tensor_shapes,
    to_files,
)
from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.errors import ObjectCorrupt, ObjectMissing

# Tensors, head, and two documents; room for a layout of later.
_MOST_FILES = 16
_BYTES_PER_VALUE = 4
# The header of a file of tensors, or a document that names every module.
_HEADER_BYTES = 1 << 20


def write_adapter(store: ObjectStore, campaign: Campaign, state: LoraState) -> str:
    """Write one adapter and return its content hash; writing it again changes nothing."""
    files = to_files(
        state, spec=campaign.adapter, task=campaign.task, base_name=campaign.base_model.name
    )
    sha256 = adapter_sha256(files)
    prefix = keys.adapter(campaign.id, sha256)
    for name in sorted(files):
        store.put_once(prefix + name, files[name])
    return sha256


def read_adapter(
    store: ObjectStore, campaign_id: str, sha256: str, *, max_bytes: int | None = None
) -> dict[str, bytes]:
    """Read the files of one adapter by name.

    Args:
        store: The campaign's store.
        campaign_id: The campaign.
        sha256: Content hash of the adapter.
        max_bytes: Longest file that is read into memory; to be given where another party may have
            written it.

    Raises:
        ObjectMissing: There is no such adapter.
        ObjectCorrupt: Its files are not what the hash promises, are too long, or too many.
    """
    prefix = keys.adapter(campaign_id, sha256)
    found = [key.removeprefix(prefix) for key in store.list(prefix)]
    # An adapter is flat; where rights are patterns, sites may be able to write deeper below it.
    names = [name for name in found if "/" not in name]
    if len(names) > _MOST_FILES:
        raise ObjectCorrupt(
            f"adapter {sha256[:16]} has {len(names)} files, at most {_MOST_FILES} are read"
        )
    files = {name: store.get(prefix + name, max_bytes=max_bytes) for name in names}
    if not files:
        raise ObjectMissing(f"no adapter {sha256[:16]} in campaign {campaign_id!r}")
    if adapter_sha256(files) != sha256:
        raise ObjectCorrupt(f"the files of adapter {sha256[:16]} do not have that hash")
    return files


def read_base(store: ObjectStore, campaign: Campaign, sha256: str) -> dict[str, bytes]:
    """Read the adapter that a round starts from as a site does, who trusts none of it.

    Raises:
        ObjectMissing: There is no such adapter.
        ObjectCorrupt: As ``read_adapter``; nothing longer than the campaign's adapter is read.
        AdapterMismatch: It is not the campaign's adapter in names, shapes or settings, or holds a
            value that is not finite.
    """
    shapes = tensor_shapes(campaign.adapter, campaign.task).values()
    limit = _BYTES_PER_VALUE * sum(math.prod(shape) for shape in shapes) + _HEADER_BYTES
    files = read_adapter(store, campaign.id, sha256, max_bytes=limit)
    state_of(files, campaign)
    return files


def read_state(store: ObjectStore, campaign: Campaign, sha256: str) -> LoraState:
    """Read one adapter as tensors."""
    return state_of(read_adapter(store, campaign.id, sha256), campaign)


def state_of(files: Mapping[str, bytes], campaign: Campaign) -> LoraState:
    """Return the tensors of an adapter's files; every target must be there, and nothing else."""
    return from_files(files, spec=campaign.adapter, task=campaign.task)


def write_initial_adapter(store: ObjectStore, campaign: Campaign) -> str:
    """Write the adapter that round 1 starts from; it depends on public numbers only."""
    return write_adapter(store, campaign, initial_state(campaign.adapter, campaign.task))
