"""What a site does around the recovery of a ledger: find what is owed, close what was lost.

Whoever restored a ledger restored the outbox with it, so rounds that were trained look as if they
were not. Before a recovered ledger is written, every round whose training may have left is closed
in the outbox: its charge paid for one draw, and no second one may follow.

Whoever runs the store can put campaigns into it that no site ever approved. So a campaign counts
that the policy, the outbox or the ledger knows; of any other one the operator has to say which.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, from_bytes, read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE
from fl_core.errors import (
    CampaignError,
    IncompatibleParts,
    LedgerCorrupt,
    ObjectCorrupt,
)
from fl_core.privacy.ledger_documents import LedgerEntry, LostCharge
from fl_core.privacy.recovery import Owed, Recovery, Unapproved, charges_of
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.status import round_numbers
from fl_core.updates.outbox import Outbox
from fl_core.updates.records import EventRecord, NonPrivateEvent

RECOVERED = "recovered"
# In place of the hash of a plan that cannot be read.
NO_PLAN = "0" * 64


@dataclass(frozen=True, slots=True)
class Agreed:
    """Which campaigns a site has agreed to.

    Attributes:
        digests: Of the campaigns in its policy and among its approvals.
        approved: Ids of those that its operator says may have been approved.
        never: Ids of those that its operator says were never approved; the ledger may know better.
    """

    digests: frozenset[str] = frozenset()
    approved: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()

    def covers(self, campaign: Campaign) -> bool:
        """Say whether a campaign was approved, or may have been."""
        return campaign.digest in self.digests or campaign.id in self.approved


def owed_by_site(  # noqa: PLR0913  two stores, which ledger, and what was agreed to
    store: ObjectStore,
    outbox: Outbox,
    *,
    site: str,
    dataset: str,
    unit: str,
    agreed: Agreed | None = None,
) -> Owed:
    """Return every round that may have cost a site something, with its event on one ledger.

    Args:
        store: The campaigns' store.
        outbox: The site's outbox.
        site: Name of the site.
        dataset: Opaque id of its protected data.
        unit: Unit of the ledger.
        agreed: What the site has agreed to; None: all that names it.

    Raises:
        CampaignError: A campaign that may have been approved cannot be read.
        LedgerCorrupt: The outbox holds an update of a campaign that is not in this store.
        StoreUnavailable: The store is away; what is owed cannot be known then.
    """
    exchanges = outbox.exchanges(keys.exchanges(dataset))
    tried = {found[0] for each in exchanges if (found := keys.exchange_of(each)) is not None}
    events: dict[str, EventRecord | None] = {}
    plans: list[LostCharge] = []
    unapproved: list[Unapproved] = []
    for campaign_id, each in _assemblies(store, agreed):
        if each is None:
            is_denied = agreed is not None and campaign_id in agreed.never
            unapproved.append(Unapproved(campaign_id, is_denied=is_denied))
        elif site in each.campaign.sites:
            event = events[each.digest] = _event(each, unit)
            planned = tuple(_planned(store, each, site=site, event=event))
            if agreed is None or each.digest in tried or agreed.covers(each.campaign):
                plans += planned
            elif planned:
                is_denied = campaign_id in agreed.never
                unapproved.append(Unapproved(campaign_id, each.digest, planned, is_denied))
    committed = []
    for prefix, plan_sha256 in outbox.plans(keys.exchanges(dataset)).items():
        exchange = keys.exchange_of(prefix)
        if exchange is None or outbox.committed(prefix) is None:
            continue
        digest, number = exchange
        if digest not in events and unit != SITE:
            raise LedgerCorrupt(
                f"the outbox holds an update of campaign {digest[:12]}, which is not in this "
                "store, so its charge is unknown; recover with the store it was made for"
            )
        if (event := events.get(digest)) is not None:
            # Whether or not its plan is still there: the coordinator could remove it.
            committed.append(_charge(digest, number, plan_sha256=plan_sha256, event=event))
    return Owed(tuple(plans), tuple(committed), tuple(unapproved))


def _assemblies(store: ObjectStore, agreed: Agreed | None) -> Iterator[tuple[str, Assembly | None]]:
    """Yield every campaign by its id; None for one that cannot be read and is left to a person."""
    for key in store.list("campaigns/"):
        campaign_id = keys.campaign_id_of(key)
        if campaign_id is None:
            continue
        try:
            yield campaign_id, read_assembly(store, campaign_id)
        except (ObjectCorrupt, CampaignError, IncompatibleParts) as error:
            if agreed is not None and campaign_id in agreed.approved:
                raise CampaignError(
                    f"campaign {campaign_id!r} may have been approved and cannot be read, so what "
                    f"its rounds cost is unknown: {error}"
                ) from error
            yield campaign_id, None


def _planned(
    store: ObjectStore, assembly: Assembly, *, site: str, event: EventRecord | None
) -> Iterator[LostCharge]:
    campaign_id = assembly.campaign.id
    for number in round_numbers(store, campaign_id):
        if event is None:
            return
        try:
            plan = read_document(store, keys.plan(campaign_id, number), RoundPlan)
        except ObjectCorrupt:
            # It may have been another one when the site read it.
            if number <= assembly.campaign.max_rounds:
                yield _charge(assembly.digest, number, plan_sha256=NO_PLAN, event=event)
            continue
        if _may_have_cost(plan, assembly, site=site):
            # By the plan's own round, as the site charges it, whatever it is stored under.
            sha256 = document_sha256(plan)
            yield _charge(assembly.digest, plan.round, plan_sha256=sha256, event=event)


def _may_have_cost(plan: RoundPlan, assembly: Assembly, *, site: str) -> bool:
    # A plan that every site refuses cost nothing, so whoever writes ten thousand of them into the
    # store makes no recovery charge more than the campaign's own rounds.
    return (
        site in plan.cohort
        and plan.campaign_digest == assembly.digest
        and plan.round <= assembly.campaign.max_rounds
    )


def _charge(digest: str, number: int, *, plan_sha256: str, event: EventRecord) -> LostCharge:
    return LostCharge(campaign_digest=digest, round=number, plan_sha256=plan_sha256, event=event)


def _event(assembly: Assembly, unit: str) -> EventRecord | None:
    return assembly.site_event if unit == SITE else assembly.row_event or NonPrivateEvent()


def close_exchanges(outbox: Outbox, recovery: Recovery, *, dataset: str) -> int:
    """Close every round of a recovered ledger that is neither in the outbox nor taken back.

    To be called before anything of the recovery is written: an interruption then only means that
    the recovery is run again.

    Returns:
        How many were closed; what the outbox holds committed stays to be sent.
    """
    entries = [
        from_bytes(LedgerEntry, data, what=f"entry {seq}")
        for seq, data in sorted(recovery.entries.items())
    ]
    voided = {entry.reserve_seq for entry in entries if entry.kind == "void"}
    closed = 0
    for entry in entries:
        for charge in () if entry.seq in voided else charges_of(entry):
            prefix = keys.exchange(dataset, charge.campaign_digest, charge.round)
            closed += outbox.mark_failed(prefix, RECOVERED)
    return closed
