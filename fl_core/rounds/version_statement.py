"""The privacy statement of a version, from what the store holds; made again at any time.

Logging writes it, ``fedloom statement --verify`` makes it again and compares. Everything in it that
a site or the federation says was signed by them for that campaign and round; the rest is public.
"""

import logging

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.errors import ObjectCorrupt, ObjectMissing, RoundError
from fl_core.privacy.audit_documents import AuditReport
from fl_core.privacy.statement import PrivacyStatement, ReleaseFacts, privacy_statement
from fl_core.privacy.statement_documents import AuditFinding, RawUpdates
from fl_core.rounds.budgets import budgets_until
from fl_core.rounds.charging import read_federation_budget
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES
from fl_core.rounds.documents import Outcome, RoundCharge
from fl_core.rounds.plan import read_outcome

_READERS = "whoever holds the coordinator's keys of the store, its own workers among them"

log = logging.getLogger(__name__)


def version_statement(
    assembly: Assembly, store: ObjectStore, round_number: int
) -> PrivacyStatement:
    """Return the statement of the version that a round released.

    Raises:
        RoundError: The round released nothing.
    """
    campaign = assembly.campaign
    outcome = read_outcome(store, campaign.id, round_number)
    if outcome is None or outcome.result_hash is None:
        raise RoundError(
            f"round {round_number} of campaign {campaign.id!r} released no version; "
            f"`fedloom status {campaign.id}` shows the rounds that did"
        )
    return privacy_statement(
        campaign,
        budgets=budgets_until(store, campaign.id, round_number=round_number),
        round_number=round_number,
        facts=release_facts(assembly, store, outcome),
    )


def release_facts(assembly: Assembly, store: ObjectStore, outcome: Outcome) -> ReleaseFacts:
    """Return what the store says of the round that released a version."""
    campaign_id = assembly.campaign.id
    try:
        charge = read_document(store, keys.charge(campaign_id, outcome.round), RoundCharge)
    except ObjectMissing:
        charge = RoundCharge(round=outcome.round, sites={})
    raw = None
    if assembly.central_noise is not None:
        raw = RawUpdates(readers=_READERS, opened=outcome.opened, deleted=outcome.closed)
    return ReleaseFacts(
        adapter_sha256=outcome.result_hash,
        contributors=outcome.contributors,
        charges=charge.sites,
        client_charges=charge.clients,
        federation=read_federation_budget(assembly, store, outcome.round),
        raw_updates=raw,
        audits=audit_findings(store, campaign_id),
    )


def audit_findings(store: ObjectStore, campaign_id: str) -> tuple[AuditFinding, ...]:
    """Return what the audits of a campaign came to, by number; those on private rows never."""
    findings = []
    for key in store.list(keys.audits(campaign_id)):
        number = keys.audit_number(campaign_id, key)
        if number is None:
            continue
        try:
            report = read_document(store, key, AuditReport, max_bytes=MAX_DOCUMENT_BYTES)
        except ObjectCorrupt as error:
            log.warning("audit not shown key=%s why=%s", key, error)
            continue
        if report.rows != "private":
            findings.append(_finding(number, report))
    return tuple(findings)


def _finding(number: int, report: AuditReport) -> AuditFinding:
    return AuditFinding(
        number=number,
        rows=report.rows,
        verdict=report.verdict,
        lower_bound=report.lower_bound,
        ceiling=report.gradient.ceiling,
        claimed_epsilon=report.claimed_epsilon,
        confidence=report.confidence,
        membership_auc=None if report.membership is None else report.membership.auc,
        failed_checks=report.failed_checks,
        label=report.label,
    )
