"""Global adapters in the store, in PEFT layout, named by their content.

The hash covers every file, so a reader that recomputes it has the whole adapter or an error.
"""

from collections.abc import Mapping

from fl_core.adapters.pair import LoraState
from fl_core.adapters.peft_layout import adapter_sha256, from_files, initial_state, to_files
from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.errors import ObjectCorrupt, ObjectMissing


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


def read_adapter(store: ObjectStore, campaign_id: str, sha256: str) -> dict[str, bytes]:
    """Read the files of one adapter by name.

    Raises:
        ObjectMissing: There is no such adapter.
        ObjectCorrupt: Its files are not what the hash promises.
    """
    prefix = keys.adapter(campaign_id, sha256)
    names = [key.removeprefix(prefix) for key in store.list(prefix)]
    # An adapter is flat; where rights are patterns, sites may be able to write deeper below it.
    files = {name: store.get(prefix + name) for name in names if "/" not in name}
    if not files:
        raise ObjectMissing(f"no adapter {sha256[:16]} in campaign {campaign_id!r}")
    if adapter_sha256(files) != sha256:
        raise ObjectCorrupt(f"the files of adapter {sha256[:16]} do not have that hash")
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
