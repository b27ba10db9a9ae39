"""Collection: every answer is checked as it comes; ``rounds.closing`` then freezes the list.

A bad update is recorded and left out; it never ends the round. Nothing here trusts what a site
says about itself: the payload is hashed and every tensor is looked at before a name is accepted.
"""

import logging
from collections.abc import Container

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import Roster, read_roster
from fl_core.errors import ObjectCorrupt, ObjectMissing, UpdateRejected
from fl_core.rounds.documents import Collected, RoundPlan, SiteAnswer
from fl_core.updates.manifest import Declined, UpdateManifest
from fl_core.updates.payload import unsalted
from fl_core.updates.update import Update
from fl_core.updates.verify import (
    Expected,
    verify_declined,
    verify_manifest,
    verify_payload,
    verify_tensors,
)

# float32 tensors plus the header of the file; more cannot be an honest payload.
_BYTES_PER_VALUE = 4
_HEADER_BYTES = 1 << 20
# A manifest names every tensor; a thousand layers are some 200 kB.
MAX_DOCUMENT_BYTES = 4 << 20

log = logging.getLogger(__name__)


def expected_of(assembly: Assembly, plan: RoundPlan, *, site: str, roster: Roster) -> Expected:
    """Return what an honest update of one site must match in one round.

    Raises:
        UpdateRejected: The plan's roster has no key for that site (reason ``site``).
    """
    entry = roster.entry(site)
    if entry is None:
        raise UpdateRejected("site", f"site {site!r} is not in roster {plan.roster_version}")
    shapes, central = assembly.shapes(plan.round), assembly.central_noise
    values = sum(_size(shape) for shape in shapes.values())
    return Expected(
        campaign_digest=assembly.digest,
        round=plan.round,
        base_hash=plan.base_hash,
        site=site,
        public_key=entry.signing_key,
        codec=assembly.campaign.codec.kind,
        shapes=shapes,
        local_steps=assembly.campaign.training.local_steps,
        max_payload_bytes=_BYTES_PER_VALUE * values + _HEADER_BYTES,
        charge_event=assembly.row_event,
        gate_suite_sha256=str(assembly.campaign.gate.sha256),
        client_event=assembly.site_event,
        norm_bound=None if central is None else central.clip_norm,
    )


def has_answered(store: ObjectStore, campaign_id: str, *, round_number: int, site: str) -> bool:
    """Say whether a site's answer to a round is complete in the store; nothing of it is checked."""
    ends = {
        keys.manifest(campaign_id, round_number, site),
        keys.declined(campaign_id, round_number, site),
    }
    return not ends.isdisjoint(store.list(keys.update_prefix(campaign_id, round_number, site)))


def answered_sites(store: ObjectStore, campaign_id: str, plan: RoundPlan) -> tuple[str, ...]:
    """Return the sites of a cohort whose answer is complete; one look at the store for them all.

    Nothing of an answer is checked.
    """
    present = frozenset(store.list(keys.updates(campaign_id, plan.round)))
    return tuple(
        site
        for site in plan.cohort
        if keys.manifest(campaign_id, plan.round, site) in present
        or keys.declined(campaign_id, plan.round, site) in present
    )


def new_answers(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, known: Container[str]
) -> dict[str, SiteAnswer]:
    """Examine the answers that have come since; one look at the store, however many sites.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
        known: Sites whose answer was examined before.
    """
    campaign_id = assembly.campaign.id
    present = frozenset(store.list(keys.updates(campaign_id, plan.round)))
    found = {
        site: _examine(assembly, store, plan, site=site, present=present)
        for site in plan.cohort
        if site not in known
    }
    return {site: answer for site, answer in found.items() if answer is not None}


def examine_site(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str
) -> SiteAnswer | None:
    """Look at what one site has put into the store; None while it has not answered.

    A manifest comes last, so its presence means the update is complete. A site that declined and
    sent a manifest as well is judged by the manifest.
    """
    present = store.list(keys.update_prefix(assembly.campaign.id, plan.round, site))
    return _examine(assembly, store, plan, site=site, present=frozenset(present))


def _examine(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    site: str,
    present: frozenset[str],
) -> SiteAnswer | None:
    campaign_id = assembly.campaign.id
    try:
        if keys.manifest(campaign_id, plan.round, site) in present:
            manifest = read_update(assembly, store, plan, site=site).manifest
            return SiteAnswer(
                status="accepted",
                manifest_sha256=document_sha256(manifest),
                payload_bytes=manifest.payload_bytes,
            )
        if keys.declined(campaign_id, plan.round, site) in present:
            return _declined(assembly, store, plan, site=site)
    except UpdateRejected as error:
        log.warning("update rejected site=%s round=%d reason=%s", site, plan.round, error.reason)
        return SiteAnswer(status="rejected", reason=error.reason)
    return None


def read_update(assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str) -> Update:
    """Read and verify one site's update, in the order of ``fl_core.updates.verify``.

    Raises:
        UpdateRejected: With the first check that fails.
    """
    expected = expected_of(
        assembly, plan, site=site, roster=read_roster(store, plan.roster_version)
    )
    manifest = _read_manifest(assembly, store, plan, expected=expected)
    try:
        payload = store.get(
            keys.payload(assembly.campaign.id, plan.round, site),
            max_bytes=expected.max_payload_bytes,
        )
    except (ObjectMissing, ObjectCorrupt) as error:
        raise UpdateRejected("payload", f"site {site!r} round {plan.round}: {error}") from error
    verify_payload(payload, manifest)
    encoded = payload if assembly.central_noise is None else unsalted(payload)
    tensors = assembly.codec.decode(encoded)
    verify_tensors(tensors, expected)
    return Update(tensors=tensors, manifest=manifest)


def _read_manifest(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, expected: Expected
) -> UpdateManifest:
    key = keys.manifest(assembly.campaign.id, plan.round, expected.site)
    try:
        manifest = read_document(store, key, UpdateManifest, max_bytes=MAX_DOCUMENT_BYTES)
    except (ObjectMissing, ObjectCorrupt) as error:
        raise UpdateRejected(
            "payload", f"site {expected.site!r} round {plan.round}: {error}"
        ) from error
    verify_manifest(manifest, expected)
    return manifest


def read_accepted_manifest(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str, collected: Collected
) -> UpdateManifest:
    """Read the manifest that was accepted from one site, and no other; its payload is not read.

    Raises:
        UpdateRejected: With the first check that fails; the manifest is gone, or another one.
    """
    roster = read_roster(store, plan.roster_version)
    expected = expected_of(assembly, plan, site=site, roster=roster)
    manifest = _read_manifest(assembly, store, plan, expected=expected)
    _require_accepted(manifest, plan, collected=collected)
    return manifest


def read_accepted(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str, collected: Collected
) -> Update:
    """Read the update that was accepted from one site, and no other.

    A site may have the right to delete what it wrote, and could write something else after it has
    seen how the round goes.

    Raises:
        UpdateRejected: With the first check that fails; the update is gone, or another one.
    """
    update = read_update(assembly, store, plan, site=site)
    _require_accepted(update.manifest, plan, collected=collected)
    return update


def _require_accepted(manifest: UpdateManifest, plan: RoundPlan, *, collected: Collected) -> None:
    if document_sha256(manifest) != collected.answers[manifest.site].manifest_sha256:
        raise UpdateRejected(
            "payload",
            f"site {manifest.site!r} round {plan.round}: the manifest is not the accepted one; it "
            "was replaced, so take the right to delete objects from the site",
        )


def _declined(assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str) -> SiteAnswer:
    expected = expected_of(
        assembly, plan, site=site, roster=read_roster(store, plan.roster_version)
    )
    key = keys.declined(assembly.campaign.id, plan.round, site)
    try:
        declined = read_document(store, key, Declined, max_bytes=MAX_DOCUMENT_BYTES)
    except ObjectCorrupt as corrupt:
        raise UpdateRejected("payload", f"site {site!r} round {plan.round}: {corrupt}") from corrupt
    verify_declined(declined, expected)
    # Under a guarantee the one code is all: what failed may depend on a row (SOUNDNESS, rule 18).
    error = None if assembly.campaign.privacy.none is None else declined.error
    return SiteAnswer(status="declined", reason=declined.reason, rules=declined.rules, error=error)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
