"""Recover a site's ledgers on its own disk, and say what was done.

Where the restored folder holds an entry of a branch that is given up, a fresh folder is filled and
takes its place; the old one stays beside it under another name, since nothing of a ledger is ever
removed by us.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fl_core.artifacts.store import ObjectStore
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.privacy.recovery import LostLedger, Recovery, append_missing, find_recovery
from fl_core.rounds.site import Site
from fl_core.rounds.site_recovery import Agreed, close_exchanges, owed_by_site
from fl_core.rounds.site_witness import witness_ledgers
from fl_core.updates.outbox import exclusive
from fl_core.updates.signing import public_hex
from tasks.settings import open_store
from tasks.site_config import CLIENT_LEDGER, LEDGER, SiteConfig, SiteHome, open_site, site_settings

NOTHING_SAID = Agreed()


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
    home: SiteHome,
    config: SiteConfig,
    *,
    assume_lost: bool = False,
    lost_key: str | None = None,
    said: Agreed = NOTHING_SAID,
) -> list[RecoveredLedger]:
    """Recover every ledger of a site, then bring it to its witnesses; safe to repeat.

    Args:
        home: The site's folder.
        config: Its config.
        assume_lost: Go on without witnesses that are away, and charge all plans.
        lost_key: Public key that the site lost, hex; its key now takes the ledgers over.
        said: What the operator says of campaigns that nothing here shows to be approved.

    Raises:
        PolicyRefused: There are such campaigns, and he has not.
        LedgerConflict: A session of the site is running.
        WitnessUnavailable: A witness of the site's own is away and ``assume_lost`` is off.
        LedgerCorrupt: Nobody holds the genesis.
        StoreUnavailable: The campaigns' store is away; what is owed cannot be known then.
    """
    with exclusive(home.root / "outbox.lock"):
        site = open_site(home, config)
        store = open_store(site_settings(home, config))
        agreed = replace(said, digests=frozenset(site.policy.campaigns))
        done = [
            _recover(
                home,
                site,
                store,
                replace(each, lost_key=lost_key),
                agreed,
                assume_lost=assume_lost,
            )
            for each in _ledgers(home, site)
        ]
        if not assume_lost:
            witness_ledgers(open_site(home, config))
    return done


def _ledgers(home: SiteHome, site: Site) -> Iterator[LostLedger]:
    dataset, unit = site.policy.dataset, site.policy.unit
    yield LostLedger(site.name, dataset, unit, site.key, home.store(LEDGER))
    if (whole := site.client_ledger) is not None:
        yield LostLedger(site.name, dataset, whole.unit, site.key, home.store(CLIENT_LEDGER))


def _recover(  # noqa: PLR0913  whose ledger, in which folder, and what people said
    home: SiteHome,
    site: Site,
    store: ObjectStore,
    lost: LostLedger,
    agreed: Agreed,
    *,
    assume_lost: bool,
) -> RecoveredLedger:
    dataset, unit = lost.dataset, lost.unit
    folder = LEDGER if unit == site.policy.unit else CLIENT_LEDGER
    owed = owed_by_site(
        store, site.outbox, site=site.name, dataset=dataset, unit=unit, agreed=agreed
    )
    now = datetime.now(UTC)
    found = find_recovery(lost, site.witnesses, owed, now=now, assume_lost=assume_lost)
    set_aside = None
    if found.is_needed:
        # First, so that an interruption leaves nothing that could be trained again.
        close_exchanges(site.outbox, found, dataset=dataset)
        if found.needs_fresh_store:
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
    append_missing(replace(lost, store=home.store(fresh)), found)
    # Between the two a crash leaves no ledger at all; recovering again fills it from witnesses.
    (home.root / folder).rename(home.root / aside)
    (home.root / fresh).rename(home.root / folder)
    descriptor = os.open(home.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return home.root / aside
