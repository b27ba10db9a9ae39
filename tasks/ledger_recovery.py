"""Recover a site's ledgers on its own disk, and say what was done.

Where the restored folder holds an entry of a branch that is given up, a fresh folder is filled and
takes its place; the old one stays beside it under another name, since nothing of a ledger is ever
removed by us.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts.store import ObjectStore
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.privacy.recovery import LostLedger, Recovery, append_missing, find_recovery
from fl_core.rounds.site import Site
from fl_core.rounds.site_recovery import close_exchanges, owed_by_site
from fl_core.rounds.site_witness import witness_ledgers
from fl_core.updates.outbox import exclusive
from fl_core.updates.signing import public_hex
from tasks.settings import open_store
from tasks.site_config import CLIENT_LEDGER, LEDGER, SiteConfig, SiteHome, open_site, site_settings


@dataclass(frozen=True, slots=True)
class RecoveredLedger:
    """What became of one ledger.

    Attributes:
        unit: Unit of the ledger.
        imported: Sequence numbers that came back from witnesses.
        replaced: Sequence numbers whose entry was of a branch that was given up.
        charged: Rounds that were charged because nobody can tell, as ``campaign digest/round``.
        set_aside: Where the old folder lies; None where it was kept.
    """

    unit: str
    imported: tuple[int, ...]
    replaced: tuple[int, ...]
    charged: tuple[str, ...]
    set_aside: Path | None


def recover_ledgers(
    home: SiteHome, config: SiteConfig, *, assume_lost: bool
) -> list[RecoveredLedger]:
    """Recover every ledger of a site, then bring it to its witnesses; safe to repeat.

    Raises:
        LedgerConflict: A session of the site is running.
        WitnessUnavailable: A witness of the site's own is away and ``assume_lost`` is off.
        LedgerCorrupt: Nobody holds the genesis.
        StoreUnavailable: The campaigns' store is away; what is owed cannot be known then.
    """
    with exclusive(home.root / "outbox.lock"):
        site = open_site(home, config)
        store = open_store(site_settings(home, config))
        done = [
            _recover(home, site, store, folder=folder, unit=unit, assume_lost=assume_lost)
            for folder, unit in _folders(site)
        ]
        if not assume_lost:
            witness_ledgers(open_site(home, config))
    return done


def _folders(site: Site) -> Iterator[tuple[str, str]]:
    yield LEDGER, site.policy.unit
    if site.client_ledger is not None:
        yield CLIENT_LEDGER, site.client_ledger.unit


def _recover(  # noqa: PLR0913  which of the site's ledgers, and how
    home: SiteHome, site: Site, store: ObjectStore, *, folder: str, unit: str, assume_lost: bool
) -> RecoveredLedger:
    dataset = site.policy.dataset
    lost = LostLedger(site.name, dataset, unit, site.key, home.store(folder))
    owed = owed_by_site(store, site.outbox, site=site.name, dataset=dataset, unit=unit)
    now = datetime.now(UTC)
    found = find_recovery(lost, site.witnesses, owed, now=now, assume_lost=assume_lost)
    set_aside = None
    if found.is_needed:
        # First, so that an interruption leaves nothing that could be trained again.
        close_exchanges(site.outbox, found, dataset=dataset)
        if found.replaced:
            set_aside = _fill_fresh(home, lost, found, folder=folder)
        else:
            append_missing(lost, found)
        read_ledger(home.store(folder), public_hex(site.key))
    charges = () if found.recovered is None else found.recovered.charges or ()
    charged = tuple(f"{each.campaign_digest[:12]}/{each.round}" for each in charges)
    return RecoveredLedger(unit, found.imported, found.replaced, charged, set_aside)


def _fill_fresh(home: SiteHome, lost: LostLedger, found: Recovery, *, folder: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    fresh, aside = f"{folder}-fresh-{stamp}", f"{folder}-set-aside-{stamp}"
    append_missing(
        LostLedger(lost.owner, lost.dataset, lost.unit, lost.key, home.store(fresh)), found
    )
    # Between the two a crash leaves no ledger at all; recovering again fills it from witnesses.
    (home.root / folder).rename(home.root / aside)
    (home.root / fresh).rename(home.root / folder)
    descriptor = os.open(home.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return home.root / aside
