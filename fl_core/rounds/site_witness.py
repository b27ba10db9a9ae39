"""A site's ledgers and their witnesses, as a round uses them.

Three times in a round every ledger goes to its witnesses: before anything is written, so that a
ledger that was set back shows before it is written on; after the reserve, before the first private
forward pass; and after the commit, before anything leaves. The last one closes a gap: a snapshot
taken between reserve and training, restored after the upload, has a ledger that looks whole, and
only the witnessed commit shows that its round was trained already (SOUNDNESS, rule 14).
"""

import logging

from fl_core.artifacts import keys
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.errors import LedgerCorrupt, PolicyRefused
from fl_core.privacy.federation_witness import witness_federation
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.witness import publish, require_enough_witnesses
from fl_core.rounds.site import Site

log = logging.getLogger(__name__)


def require_witnesses(site: Site, campaign: Campaign) -> None:
    """Refuse a campaign with a guarantee at a site that cannot show a rollback.

    Raises:
        PolicyRefused: The site has fewer than two witnesses, or none but the coordinator.
    """
    if campaign.privacy.none is None:
        require_enough_witnesses([witness.is_own for witness in site.witnesses])


def witness_ledgers(site: Site) -> None:
    """Bring all entries of the site's ledgers to the witnesses.

    A site without a witness of its own takes part in campaigns without a guarantee only; there is
    nothing to hold for them.

    Raises:
        LedgerCorrupt: A witness shows that a ledger was rolled back or forked.
        WitnessUnavailable: No witness of the site's own acknowledged the last entry.
    """
    if any(witness.is_own for witness in site.witnesses):
        for ledger in ledgers_of(site):
            held = None if site.witnessed is None else site.witnessed.setdefault(ledger.unit, {})
            publish(ledger, site.witnesses, owner=site.name, held=held)


def require_outbox_kept(site: Site, assembly: Assembly, round_number: int) -> None:
    """Refuse to train a round whose update the ledger knows and the outbox does not.

    Raises:
        LedgerCorrupt: The outbox was rolled back without its ledger; another training would be a
            second draw on one charge (SOUNDNESS, rule 11).
    """
    prefix = keys.exchange(site.policy.dataset, assembly.digest, round_number)
    for ledger in ledgers_of(site):
        chain = ledger.chain()
        reserve = chain.reserve_of(assembly.digest, round_number)
        ending = None if reserve is None else chain.endings.get(reserve.seq)
        is_committed = ending is not None and ending.kind == "commit"
        # A recovery closes what it takes back, and says by that that nothing follows.
        if is_committed and not site.outbox.is_closed(prefix):
            raise LedgerCorrupt(
                f"the ledger of {ledger.dataset!r} says that round {round_number} was committed, "
                "and the outbox holds nothing of it; an older outbox was restored, so nothing is "
                "trained for this round again"
            )


def witness_coordinator(site: Site, assembly: Assembly, store: ObjectStore) -> None:
    """Be a witness of the federation's ledger, where the coordinator adds and charges the noise.

    Raises:
        PolicyRefused: The site keeps no copies of that ledger.
        LedgerCorrupt: The ledger was rolled back, forked or made again since the site last saw it.
    """
    if assembly.central_noise is None:
        return
    if site.federation_copies is None:
        raise PolicyRefused(
            "the campaign's noise is added by the coordinator, and this site keeps no copies of "
            "the ledger that it charges; open the site from its folder"
        )
    witness_federation(store, site.federation_copies)


def ledgers_of(site: Site) -> tuple[Ledger, ...]:
    """Return the site's ledgers: of a unit of its rows, and of its whole data if it keeps one."""
    return (site.ledger,) if site.client_ledger is None else (site.ledger, site.client_ledger)


def void_idle_reserves(site: Site, assembly: Assembly, store: ObjectStore) -> int:
    """Take back the charges of closed rounds that no training was begun for.

    The caller holds the lock of the outbox. What was begun, whatever became of it, stays charged.

    Returns:
        How many charges were taken back.

    Raises:
        LedgerCorrupt: As ``witness_ledgers``, which is asked first: a rolled back outbox has
            forgotten what was begun.
        WitnessUnavailable: As ``witness_ledgers``.
    """
    idle = [
        (ledger, reserve)
        for ledger in ledgers_of(site)
        for reserve in ledger.chain().open_reserves()
        if reserve.campaign_digest == assembly.digest
        and exists(store, keys.outcome(assembly.campaign.id, reserve.round or 0))
    ]
    if idle:
        witness_ledgers(site)
    voided = 0
    for ledger, reserve in idle:
        prefix = keys.exchange(site.policy.dataset, assembly.digest, reserve.round or 0)
        # The tombstone first: from here on no training can start for it (SOUNDNESS, rule 12).
        if site.outbox.void(prefix) and ledger.void(reserve).kind == "void":
            voided += 1
            log.info("charge voided round=%s unit=%s", reserve.round, ledger.unit)
    return voided
