"""Charging: what pays for a release is written down before the release exists.

Under RecordDp the sites have charged their own ledgers before their updates left; here their
signed charges are recorded, each compared with the noise that this side built from the campaign.
"""

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import ObjectMissing, PrivacyError
from fl_core.rounds.collection import read_update
from fl_core.rounds.documents import Collected, RoundCharge, RoundPlan
from fl_core.updates.records import BudgetStatement, Charge


def charge_round(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, collected: Collected
) -> RoundCharge:
    """Record the charges of all accepted updates.

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
        manifest, _ = read_update(assembly, store, plan, site=site)
        if manifest.charge is None:
            raise PrivacyError(f"update of site {site!r} round {plan.round} carries no charge")
        sites[site] = manifest.charge
    return write_document(store, key, RoundCharge(round=plan.round, sites=sites))


def read_budgets(
    store: ObjectStore, campaign_id: str, collected: Collected
) -> dict[str, BudgetStatement]:
    """Return the budget statements beside the accepted updates; a site may state none."""
    budgets: dict[str, BudgetStatement] = {}
    for site in collected.accepted:
        key = keys.budget(campaign_id, collected.round, site)
        try:
            budgets[site] = read_document(store, key, BudgetStatement)
        except ObjectMissing:
            continue
    return budgets
