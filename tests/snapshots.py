"""Sites that are set back: copies of stores, restores, and recoveries, in memory.

A snapshot is a copy of the site's own stores; the witnesses' stores go on, as another disk does.
"""

from dataclasses import replace

from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import StoreUnavailable
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.recovery import LostLedger, append_missing, find_recovery
from fl_core.rounds.plan import open_round
from fl_core.rounds.release import skip_round
from fl_core.rounds.site_recovery import close_exchanges, owed_by_site
from fl_core.rounds.site_round import client_round
from fl_core.updates.outbox import Outbox
from fl_core.updates.signing import public_hex
from tests.worlds import NOW, open_site


class AwayStore(MemoryStore):
    """A store that answers nothing while ``is_away``."""

    is_away = True

    def _answer(self):
        if self.is_away:
            raise StoreUnavailable("no route to the witness")

    def get(self, key, *, max_bytes=None):
        self._answer()
        return super().get(key, max_bytes=max_bytes)

    def put_once(self, key, data):
        self._answer()
        return super().put_once(key, data)

    def list(self, prefix):
        self._answer()
        return super().list(prefix)


def copy_of(store):
    copied = MemoryStore()
    for key in store.list(""):
        copied.put_once(key, store.get(key))
    return copied


def take_part(world, site, number=1):
    plan = open_round(world.assembly, world.store, round_number=number, now=NOW)
    work, assembly, store = world.works["a"], world.assembly, world.store
    return client_round(site, work, assembly=assembly, store=store, plan=plan)


def close(world, number=1):
    plan = open_round(world.assembly, world.store, round_number=number, now=NOW)
    skip_round(world.assembly, world.store, plan, reason="too few updates", now=NOW)


def restored(world, ledger, outbox):
    """Return site a over stores that were set back, with the witnesses as they are."""
    old = world.sites["a"]
    return open_site("a", old.key, old.policy, ledger, outbox, witnesses=old.witnesses)


def recover(world, ledger_store, outbox_store, *, assume_lost=False):
    """Do what `fedloom ledger recover` does over stores in memory; return site and ledger."""
    old = world.sites["a"]
    outbox = Outbox(outbox_store)
    lost = LostLedger("a", old.policy.dataset, old.policy.unit, old.key, ledger_store)
    owed = owed_by_site(
        world.store, outbox, site="a", dataset=old.policy.dataset, unit=old.policy.unit
    )
    found = find_recovery(lost, old.witnesses, owed, now=NOW, assume_lost=assume_lost)
    close_exchanges(outbox, found, dataset=old.policy.dataset)
    target = replace(lost, store=MemoryStore()) if found.replaced else lost
    append_missing(target, found)
    assert ChainReader(public_hex(old.key)).read(target.store).findings == []
    return restored(world, target.store, outbox_store), target.store
