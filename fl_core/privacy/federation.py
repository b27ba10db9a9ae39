"""The federation's ledger: what whole sites have spent under noise that the coordinator adds.

Central ClientDp is kept by the coordinator, so it charges (SOUNDNESS, rule 8): before anything is
released, on one ledger for all campaigns of a store, whose unit is a site. Nothing is claimed
against the coordinator itself. The ledger lies in the campaigns' store, where every site reads it:
the sites are its witnesses (rule 14). Its key and its limits stay with the coordinator.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import Document, read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE, Delta
from fl_core.errors import (
    BudgetExhausted,
    LedgerCorrupt,
    ObjectMissing,
    PolicyRefused,
    UpdateRejected,
)
from fl_core.privacy.budget import verdict
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_documents import LedgerEntry
from fl_core.privacy.policy_documents import UNUSED_RDP_ORDER, SitePolicy
from fl_core.privacy.stated_budget import Budget, budget_statement
from fl_core.updates.records import LARGEST_EPSILON, BudgetStatement, EventRecord
from fl_core.updates.signing import SigningKey, public_hex, verify_signature

DATASET = "clients"
NAME = "federation"
_REMEDY = (
    "the coordinator runs `fedloom federation init --epsilon E --delta D` once and sets "
    "FEDLOOM_FEDERATION; or state mechanism = 'local_gaussian', which needs no trust in it"
)


class FederationLimits(Document):
    """What all campaigns of a store together may spend of a whole site's privacy.

    Attributes:
        epsilon: Limit over all campaigns, ever.
        delta: At which epsilon is evaluated; a campaign with a larger one is refused.
    """

    epsilon: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)]
    delta: Delta


class FederationIdentity(Document):
    """Whose key signs the federation's ledger, hex; written once beside it."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Federation:
    """The federation's ledger, open for charging.

    Attributes:
        policy: The limits, as a policy of unit ``site``.
        key: The coordinator's key for this ledger.
        ledger: The ledger.
    """

    policy: SitePolicy
    key: SigningKey
    ledger: Ledger


def create_federation(
    store: ObjectStore, *, limits: FederationLimits, key: SigningKey, now: datetime
) -> Federation:
    """Write the genesis of the federation's ledger into the campaigns' store.

    Raises:
        PolicyRefused: There is one already; a second would forget what is spent.
    """
    federation = open_federation(store, limits=limits, key=key, is_new=True)
    Ledger.create(_part(store), dataset=DATASET, unit=SITE, key=key, now=now)
    return federation


def open_federation(
    store: ObjectStore, *, limits: FederationLimits, key: SigningKey, is_new: bool = False
) -> Federation:
    """Open the ledger for charging.

    Args:
        store: The campaigns' store.
        limits: The coordinator's own, as they are now.
        key: The key that signed the genesis.
        is_new: Writes down whose ledger it is going to be.

    Raises:
        PolicyRefused: There is no ledger in this store, or another key signs it.
    """
    own = FederationIdentity(public_key=public_hex(key))
    found = write_document(store, keys.FEDERATION_IDENTITY, own) if is_new else identity(store)
    if found is None:
        raise PolicyRefused("this store has no ledger of the federation", hint=_REMEDY)
    if found != own:
        raise PolicyRefused(
            f"the federation's ledger in this store is signed by key {found.public_key[:16]}..., "
            f"this coordinator holds {own.public_key[:16]}...; use the key it was made with, a "
            "second ledger would forget what is spent"
        )
    policy = SitePolicy(
        dataset=DATASET,
        unit=SITE,
        epsilon=limits.epsilon,
        delta=limits.delta,
        # No RDP decides here; a fixed order keeps the terms when the limit is changed.
        rdp_order=UNUSED_RDP_ORDER,
        base_models=("*",),
        suites=("*",),
    )
    return Federation(policy, key, Ledger(_part(store), dataset=DATASET, unit=SITE, key=key))


def identity(store: ObjectStore) -> FederationIdentity | None:
    """Return whose key signs the federation's ledger in a store, or None if it has none."""
    try:
        return read_document(store, keys.FEDERATION_IDENTITY, FederationIdentity)
    except ObjectMissing:
        return None


def require_federation(federation: Federation | None, campaign: Campaign) -> Federation:
    """Return the federation if it can keep a campaign's central promise.

    Raises:
        PolicyRefused: There is none, or the campaign's delta is larger than its own.
    """
    client = campaign.privacy.client
    if federation is None:
        raise PolicyRefused(
            f"campaign {campaign.id!r} has noise that the coordinator adds, and this coordinator "
            "keeps no ledger to charge it on",
            hint=_REMEDY,
        )
    own = federation.policy.delta
    if client is not None and client.delta > own:
        raise PolicyRefused(
            f"the federation's delta is {own:g} and campaign {campaign.id!r} states "
            f"{client.delta:g}; a larger delta makes any epsilon cheap, so use one no larger"
        )
    return federation


def is_affordable(federation: Federation, event: EventRecord) -> bool:
    """Say whether one more release of ``event`` fits the federation's limits.

    Raises:
        LedgerCorrupt: The ledger does not hold.
    """
    try:
        verdict(federation.policy, federation.ledger.events(), event)
    except BudgetExhausted:
        return False
    return True


def charge_release(
    federation: Federation,
    *,
    campaign_digest: str,
    round_number: int,
    plan_sha256: str,
    event: EventRecord,
) -> LedgerEntry:
    """Reserve one release on the federation's ledger, or return the reserve made before.

    Raises:
        BudgetExhausted: It would pass the federation's epsilon.
        LedgerCorrupt: The ledger does not hold.
    """
    return federation.ledger.reserve(
        campaign_digest=campaign_digest,
        round_number=round_number,
        plan_sha256=plan_sha256,
        event=event,
        require=lambda events: verdict(federation.policy, events, event),
    )


def require_reserved(
    federation: Federation, *, campaign_digest: str, round_number: int
) -> LedgerEntry:
    """Return the reserve of a round's release.

    Raises:
        LedgerCorrupt: There is no such reserve: an older ledger was restored.
    """
    reserve = federation.ledger.chain().reserve_of(campaign_digest, round_number)
    if reserve is None:
        raise LedgerCorrupt(
            f"round {round_number} has a charge that is not on the federation's ledger; an older "
            "ledger was restored, so nothing is released"
        )
    return reserve


def commit_release(federation: Federation, reserve: LedgerEntry) -> None:
    """Note that the release of a reserve is written; a second time changes nothing."""
    federation.ledger.commit(reserve)


def federation_statement(
    federation: Federation, *, campaign_digest: str, round_number: int, event: EventRecord
) -> BudgetStatement:
    """Return the coordinator's signed statement of what whole sites have spent, over all campaigns.

    Raises:
        LedgerCorrupt: The ledger does not hold.
    """
    return budget_statement(
        federation.key,
        site=NAME,
        campaign_digest=campaign_digest,
        round_number=round_number,
        record=Budget(federation.ledger, federation.policy, event),
    )


def verify_federation_statement(
    statement: BudgetStatement,
    store: ObjectStore,
    *,
    campaign_digest: str,
    round_number: int,
) -> None:
    """Check that a statement is the coordinator's own about one round of one campaign.

    Raises:
        UpdateRejected: Another key signed it (``signature``), or it is about something else.
    """
    own = identity(store)
    if own is None or not verify_signature(statement, own.public_key):
        raise UpdateRejected(
            "signature", "the federation's statement is not signed by the key of its ledger"
        )
    found = (statement.site, statement.dataset, statement.campaign_digest, statement.round)
    if found != (NAME, DATASET, campaign_digest, round_number):
        raise UpdateRejected("round", "the federation's statement is about another round")


def _part(store: ObjectStore) -> Below:
    return Below(store, keys.FEDERATION)
