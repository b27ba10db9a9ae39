"""Collection: every answer is checked as it comes; ``rounds.closing`` then freezes the list.

A bad update is recorded and left out; it never ends the round. Nothing here trusts what a site
says about itself: the payload is hashed and every tensor is looked at before a name is accepted.
"""

import functools
import logging
from collections.abc import Container

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import Roster, read_roster
from fl_core.errors import ObjectCorrupt, ObjectMissing, StoreError, UpdateRejected
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
    present = frozenset(store.list(keys.updates(assembly.campaign.id, plan.round)))
    answers = RoundAnswers(assembly, store, plan)
    found = {
        site: answers.examine(site, present=present) for site in plan.cohort if site not in known
    }
    return {site: answer for site, answer in found.items() if answer is not None}


def examine_site(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, site: str
) -> SiteAnswer | None:
    """Look at what one site has put into the store; None while it has not answered."""
    present = store.list(keys.update_prefix(assembly.campaign.id, plan.round, site))
    return RoundAnswers(assembly, store, plan).examine(site, present=frozenset(present))


class RoundAnswers:
    """Reads and verifies what sites wrote in one round; the plan's roster is read once.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
    """

    def __init__(self, assembly: Assembly, store: ObjectStore, plan: RoundPlan) -> None:
        self._assembly, self._store, self._plan = assembly, store, plan

    @functools.cached_property
    def _roster(self) -> Roster:
        return read_roster(self._store, self._plan.roster_version)

    def examine(self, site: str, *, present: frozenset[str]) -> SiteAnswer | None:
        """Judge what one site wrote; None while it has not answered.

        A manifest comes last, so its presence means the update is complete. A site that declined
        and sent a manifest as well is judged by the manifest.

        Args:
            site: The site.
            present: Keys that are there of what it writes.
        """
        campaign_id, number = self._assembly.campaign.id, self._plan.round
        try:
            if keys.manifest(campaign_id, number, site) in present:
                manifest = self.update(site).manifest
                return SiteAnswer(
                    status="accepted",
                    manifest_sha256=document_sha256(manifest),
                    payload_bytes=manifest.payload_bytes,
                )
            if keys.declined(campaign_id, number, site) in present:
                return self._declined(site)
        except UpdateRejected as error:
            log.warning("update rejected site=%s round=%d reason=%s", site, number, error.reason)
            return SiteAnswer(status="rejected", reason=error.reason)
        return None

    def update(self, site: str) -> Update:
        """Read and verify one site's update, in the order of ``fl_core.updates.verify``.

        Raises:
            UpdateRejected: With the first check that fails.
        """
        assembly, expected = self._assembly, self._expected(site)
        manifest = self._manifest(expected)
        key = keys.payload(assembly.campaign.id, self._plan.round, site)
        try:
            payload = self._store.get(key, max_bytes=expected.max_payload_bytes)
        except (ObjectMissing, ObjectCorrupt) as error:
            raise self._unreadable(site, error) from error
        verify_payload(payload, manifest)
        encoded = payload if assembly.central_noise is None else unsalted(payload)
        tensors = assembly.codec.decode(encoded)
        verify_tensors(tensors, expected)
        return Update(tensors=tensors, manifest=manifest)

    def accepted(self, site: str, *, collected: Collected) -> Update:
        """Read the update that was accepted from one site, and no other.

        A site may have the right to delete what it wrote, and could write something else after it
        has seen how the round goes.

        Raises:
            UpdateRejected: With the first check that fails; the update is gone, or another one.
        """
        update = self.update(site)
        self._require_accepted(update.manifest, collected)
        return update

    def accepted_manifest(self, site: str, *, collected: Collected) -> UpdateManifest:
        """Read the manifest that was accepted from one site, and no other, without its payload.

        Raises:
            UpdateRejected: With the first check that fails; it is gone, or another one.
        """
        manifest = self._manifest(self._expected(site))
        self._require_accepted(manifest, collected)
        return manifest

    def _expected(self, site: str) -> Expected:
        return expected_of(self._assembly, self._plan, site=site, roster=self._roster)

    def _manifest(self, expected: Expected) -> UpdateManifest:
        key = keys.manifest(self._assembly.campaign.id, self._plan.round, expected.site)
        try:
            manifest = read_document(self._store, key, UpdateManifest, max_bytes=MAX_DOCUMENT_BYTES)
        except (ObjectMissing, ObjectCorrupt) as error:
            raise self._unreadable(expected.site, error) from error
        verify_manifest(manifest, expected)
        return manifest

    def _declined(self, site: str) -> SiteAnswer:
        key = keys.declined(self._assembly.campaign.id, self._plan.round, site)
        try:
            declined = read_document(self._store, key, Declined, max_bytes=MAX_DOCUMENT_BYTES)
        except ObjectCorrupt as error:
            raise self._unreadable(site, error) from error
        verify_declined(declined, self._expected(site))
        # Under a guarantee the one code is all: what failed may depend on a row (rule 18).
        is_open = self._assembly.campaign.privacy.none is not None
        return SiteAnswer(
            status="declined",
            reason=declined.reason,
            rules=declined.rules,
            error=declined.error if is_open else None,
        )

    def _require_accepted(self, manifest: UpdateManifest, collected: Collected) -> None:
        if document_sha256(manifest) != collected.answers[manifest.site].manifest_sha256:
            raise UpdateRejected(
                "payload",
                f"site {manifest.site!r} round {self._plan.round}: the manifest is not the "
                "accepted one; it was replaced, so take the right to delete objects from the site",
            )

    def _unreadable(self, site: str, error: StoreError) -> UpdateRejected:
        return UpdateRejected("payload", f"site {site!r} round {self._plan.round}: {error}")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
