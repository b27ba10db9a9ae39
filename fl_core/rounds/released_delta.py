"""The released delta in the store: written once, and read back by whoever goes on from it."""

from collections.abc import Mapping

from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.components import ComponentSpec
from fl_core.codecs.codec import CODECS
from fl_core.updates.payload import encode_tensors, require_finite
from fl_core.updates.update import Array

RELEASE_CODEC = ComponentSpec(kind="float32")


def write_release(
    store: ObjectStore, campaign_id: str, round_number: int, tensors: Mapping[str, Array]
) -> None:
    """Write a released delta unless there is one; of two draws of noise the first stands.

    Raises:
        UpdateRejected: Reason ``not_finite``.
    """
    for name in sorted(tensors):
        require_finite(name, tensors[name])
    store.put_once(keys.release(campaign_id, round_number), encode_tensors(tensors))


def read_release(store: ObjectStore, campaign_id: str, round_number: int) -> dict[str, Array]:
    """Return the released delta that is stored.

    Raises:
        ObjectMissing: Nothing was released.
    """
    data = store.get(keys.release(campaign_id, round_number))
    return dict(CODECS.build(RELEASE_CODEC).decode(data))
