"""A copy of the campaigns' store in a folder, and back.

Tools that copy a bucket by way of files lose the SHA-256 that stands beside every object, and the
store refuses objects without it. Here every object is read with its hash, written once and synced.
Raw updates under noise of the coordinator are in no copy (SOUNDNESS, rule 26): a backup would keep
them beyond their round's outcome. What was buried stays buried, so its key stays taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fl_core.artifacts import keys
from fl_core.artifacts.site_keys import round_of_update
from fl_core.artifacts.store import ObjectStore, is_buried
from fl_core.errors import CampaignError, ObjectMissing, StoreUnavailable
from fl_core.rounds.plan import read_assembly

MAX_LOOKS = 20


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    Attributes:
        new: Objects that were written.
        known: Objects that were there.
        left_out: Raw updates of open rounds, which no copy holds.
    """

    new: int
    known: int
    left_out: int


def back_up(
    source: ObjectStore, target: ObjectStore, *, tell: Callable[[int], None] = lambda _: None
) -> Copied:
    """Copy what ``target`` lacks; again and again until nothing new appears.

    Objects are written after those that they need, so a copy in which the last look found nothing
    new holds no object without what it needs.

    Args:
        source: The campaigns' store.
        target: The backup; a later call adds to it.
        tell: Told how many objects were written so far.

    Raises:
        StoreUnavailable: New objects appear all the time.
        ObjectCorrupt: An object is not what its hash says.
    """
    held, raw = set(target.list("")), _RawUpdates(source)
    known, new, left_out = len(held), 0, set[str]()
    for _ in range(MAX_LOOKS):
        lacking = [key for key in source.list("") if key not in held and key not in left_out]
        if not lacking:
            return Copied(new, known, len(left_out))
        for key in lacking:
            if raw.includes(key):
                left_out.add(key)
                continue
            target.put_once(key, source.get(key))
            held.add(key)
            new += 1
            tell(new)
    raise StoreUnavailable(
        f"the store has new objects after {MAX_LOOKS} looks; copy it while no round is open"
    )


def restore(
    source: ObjectStore, target: ObjectStore, *, tell: Callable[[int], None] = lambda _: None
) -> Copied:
    """Write a backup into a store that has nothing else under the same names.

    Args:
        source: The backup.
        target: The campaigns' store; best an empty one.
        tell: Told how many objects were written so far.

    Raises:
        CampaignError: The backup is empty, or the store holds other bytes under a key of it;
            nothing was written then.
    """
    found, there = source.list(""), set(target.list(""))
    if not found:
        raise CampaignError("the backup holds no object; name a folder of `fedloom backup`")
    for key in found:
        if key in there and target.get(key) != source.get(key):
            raise CampaignError(
                f"the store holds another {key!r} than the backup; restore into an empty store"
            )
    new = 0
    for key in found:
        new += target.put_once(key, source.get(key))
        tell(new)
    return Copied(new, len(found) - new, 0)


class _RawUpdates:
    """Tells raw updates from everything else."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._central: dict[str, bool] = {}

    def includes(self, key: str) -> bool:
        update = round_of_update(key)
        if update is None or not key.endswith(f"/{keys.PAYLOAD}"):
            return False
        return self._is_central(update[0]) and not is_buried(self._store, key)

    def _is_central(self, campaign_id: str) -> bool:
        if campaign_id not in self._central:
            try:
                noise = read_assembly(self._store, campaign_id).central_noise
                self._central[campaign_id] = noise is not None
            except (CampaignError, ObjectMissing):
                # Nobody can tell what stands there, so it is taken for the worse.
                self._central[campaign_id] = True
        return self._central[campaign_id]
