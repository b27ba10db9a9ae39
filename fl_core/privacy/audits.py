"""Audits of a campaign in a store: numbered, write-once, on public rows only.

A report on private rows stays at its site (SOUNDNESS, rule 23), so it is refused here whoever
brings it; the site keeps it in a store of its own.
"""

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import PrivacyError
from fl_core.privacy.audit_documents import AuditReport


def write_audit(store: ObjectStore, report: AuditReport) -> int:
    """Write a report under the next free number and return the number.

    Raises:
        PrivacyError: It speaks of private rows.
    """
    if report.rows == "private":
        raise PrivacyError(
            "the audit ran on private rows, its report stays at the site; audit on public or "
            "synthetic rows to publish one"
        )
    return _append(store, report)


def keep_audit(site_store: ObjectStore, report: AuditReport) -> int:
    """Write a report into a store of the site's own, which nothing is ever sent from."""
    return _append(site_store, report)


def read_audits(store: ObjectStore, campaign_id: str) -> list[tuple[int, AuditReport]]:
    """Return all audits of a campaign with their numbers, oldest first."""
    numbers = (keys.audit_number(campaign_id, key) for key in store.list(keys.audits(campaign_id)))
    return [
        (number, read_document(store, keys.audit(campaign_id, number), AuditReport))
        for number in sorted(number for number in numbers if number is not None)
    ]


def _append(store: ObjectStore, report: AuditReport) -> int:
    taken = [number for number, _ in read_audits(store, report.campaign_id)]
    number = max(taken, default=0) + 1
    # Whoever loses the race for a number takes the next one.
    while not store.put_once(keys.audit(report.campaign_id, number), to_bytes(report)):
        number += 1
    return number
