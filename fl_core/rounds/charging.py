"""Charging: what pays for a release is written down before the release exists.

Where the noise was added at the sites they have charged their own ledgers before their updates
left; here their signed charges are recorded, each compared with the noise that this side built from
the campaign. Noise that is added here is charged here, on the federation's ledger.
"""

import logging
from typing import Any

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import read_roster
from fl_core.errors import (
    BudgetExhausted,
    ObjectCorrupt,
    ObjectMissing,
    UpdateRejected,
)
from fl_core.privacy.federation import (
    Federation,
    charge_release,
    federation_statement,
    require_federation,
    verify_federation_statement,
)
from fl_core.rounds.central_release import NO_FEDERATION, Coordinator
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES, RoundAnswers, expected_of
from fl_core.rounds.documents import Collected, RoundCharge, RoundPlan
from fl_core.updates.records import BudgetStatement, Charge, EventRecord
from fl_core.updates.verify import verify_statement

log = logging.getLogger(__name__)


def charge_round(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    collected: Collected,
    coordinator: Coordinator = NO_FEDERATION,
) -> RoundCharge:
    """Record what pays for the round's release: the sites' charges, and the coordinator's own.

    An accepted update that is gone meanwhile, or another one, has no charge, and its round no
    release. Under central ClientDp the round's event is reserved on the federation's ledger here;
    where that would pass its limit the round is refused, and nothing is released.

    Raises:
        PolicyRefused: Central ClientDp without a ledger of the federation.
        LedgerCorrupt: The federation's ledger does not hold.
    """
    key = keys.charge(assembly.campaign.id, plan.round)
    try:
        return read_document(store, key, RoundCharge)
    except ObjectMissing:
        pass
    sites, clients = _site_charges(assembly, store, plan, collected)
    own: dict[str, Any] = {}
    if assembly.central_noise is not None:
        opened = require_federation(coordinator.federation, assembly.campaign)
        own = _own_charge(opened, assembly, store, plan, event=assembly.central_noise.event)
    charge = RoundCharge(round=plan.round, sites=sites, clients=clients, **own)
    return write_document(store, key, charge)


def _site_charges(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, collected: Collected
) -> tuple[dict[str, Charge], dict[str, Charge]]:
    sites: dict[str, Charge] = {}
    clients: dict[str, Charge] = {}
    answers = RoundAnswers(assembly, store, plan)
    is_promised = assembly.row_event is not None or assembly.site_event is not None
    for site in collected.accepted if is_promised else ():
        try:
            # Verified: whoever had to charge did, and exactly the event of our own noise.
            manifest = answers.accepted_manifest(site, collected=collected)
        except UpdateRejected as error:
            log.warning("update not charged site=%s round=%d why=%s", site, plan.round, error)
            continue
        if manifest.charge is not None:
            sites[site] = manifest.charge
        if manifest.client_charge is not None:
            clients[site] = manifest.client_charge
    return sites, clients


def _own_charge(
    federation: Federation,
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    event: EventRecord,
) -> dict[str, Any]:
    try:
        reserve = charge_release(
            federation,
            campaign_digest=assembly.digest,
            round_number=plan.round,
            plan_sha256=document_sha256(plan),
            event=event,
        )
    except BudgetExhausted as error:
        log.warning("release not paid for round=%d why=%s", plan.round, error)
        return {"refused": "budget"}
    statement = federation_statement(
        federation, campaign_digest=assembly.digest, round_number=plan.round, event=event
    )
    write_document(store, keys.federation_budget(assembly.campaign.id, plan.round), statement)
    return {"federation": Charge(event=event, ledger_seq=reserve.seq)}


def read_federation_budget(
    assembly: Assembly, store: ObjectStore, round_number: int
) -> BudgetStatement | None:
    """Return what whole sites had spent at a round, as the coordinator signed it; None without.

    One whose signature does not hold counts as not stated, and is logged.
    """
    if assembly.central_noise is None:
        return None
    key = keys.federation_budget(assembly.campaign.id, round_number)
    try:
        statement = read_document(store, key, BudgetStatement, max_bytes=MAX_DOCUMENT_BYTES)
        verify_federation_statement(
            statement, store, campaign_digest=assembly.digest, round_number=round_number
        )
    except ObjectMissing:
        return None
    except (ObjectCorrupt, UpdateRejected) as error:
        log.warning("federation's budget not stated round=%d why=%s", round_number, error)
        return None
    return statement


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
