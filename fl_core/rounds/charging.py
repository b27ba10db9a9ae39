"""Charging: what pays for a release is written down before the release exists.

Under RecordDp the sites have charged their own ledgers before their updates left; here their
signed charges are recorded, each compared with the noise that this side built from the campaign.
"""

import logging

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import read_roster
from fl_core.errors import ObjectCorrupt, ObjectMissing, PrivacyError, UpdateRejected
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES, expected_of, read_accepted
from fl_core.rounds.documents import Collected, RoundCharge, RoundPlan
from fl_core.updates.records import BudgetStatement, Charge
from fl_core.updates.verify import verify_statement

log = logging.getLogger(__name__)


def charge_round(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, collected: Collected
) -> RoundCharge:
    """Record the charges of all accepted updates.

    One that is gone meanwhile, or another one, has no charge, and its round no release.

    Raises:
        PrivacyError: An accepted update carries no charge though the campaign promises RecordDp.
    """
    key = keys.charge(assembly.campaign.id, plan.round)
    try:
        return read_document(store, key, RoundCharge)
    except ObjectMissing:
        pass
    sites: dict[str, Charge] = {}
    for site in collected.accepted if assembly.noise is not None else []:
        try:
            update = read_accepted(assembly, store, plan, site=site, collected=collected)
        except UpdateRejected as error:
            log.warning("update not charged site=%s round=%d why=%s", site, plan.round, error)
            continue
        if update.manifest.charge is None:
            raise PrivacyError(f"update of site {site!r} round {plan.round} carries no charge")
        sites[site] = update.manifest.charge
    return write_document(store, key, RoundCharge(round=plan.round, sites=sites))


def read_budgets(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, collected: Collected
) -> dict[str, BudgetStatement]:
    """Return the signed budget statements beside the accepted updates.

    A site whose policy withholds it states none; one whose statement does not verify counts as
    not stated, and is logged.
    """
    roster = read_roster(store, plan.roster_version)
    budgets: dict[str, BudgetStatement] = {}
    for site in collected.accepted:
        key = keys.budget(assembly.campaign.id, collected.round, site)
        try:
            statement = read_document(store, key, BudgetStatement, max_bytes=MAX_DOCUMENT_BYTES)
            verify_statement(statement, expected_of(assembly, plan, site=site, roster=roster))
        except ObjectMissing:
            continue
        except (ObjectCorrupt, UpdateRejected) as error:
            log.warning("budget not stated site=%s round=%d why=%s", site, plan.round, error)
            continue
        budgets[site] = statement
    return budgets
