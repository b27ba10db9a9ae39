"""Who is enrolled, as the newest roster has it.

The roster decides at every request and not when a connection is made, so a site that was revoked is
refused although its connection is still open. Writes ask the store for a newer roster each time;
reads take one that is half a second old.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import Roster, RosterEntry
from fl_core.errors import CampaignError, StoreError
from tasks.certificates import certificate_sha256, require_site_certificate

FRESH_S = 0.5
_AWAY_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Members:
    """One roster, looked up by what a connection shows.

    Attributes:
        roster: The roster.
        by_certificate: Entries by the SHA-256 of their certificate; a living one before any other.
            A certificate bears its site's name, so no two sites meet here.
    """

    roster: Roster
    by_certificate: dict[str, RosterEntry]

    @classmethod
    def of(cls, roster: Roster) -> "Members":
        """Return the members of a roster."""
        found: dict[str, RosterEntry] = {}
        for entry in roster.entries:
            digest = _certificate_of(entry)
            if digest is not None and (digest not in found or entry.revoked is None):
                found[digest] = entry
        return cls(roster, found)

    def certificates(self) -> list[str]:
        """Return the certificates of all entries, PEM, less those that are not their site's own.

        Withdrawn ones too: whoever comes with one is told so and recorded by name.
        """
        readable = (each for each in self.roster.entries if _certificate_of(each) is not None)
        return [entry.certificate for entry in readable if entry.certificate is not None]


class RosterWatch:
    """The newest roster of a store.

    Args:
        store: The campaigns' store.
        on_change: Told when there is another roster.
    """

    def __init__(self, store: ObjectStore, on_change: Callable[[Members], None]) -> None:
        self._store = store
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._looked_at = float("-inf")
        self.members = Members.of(Roster(version=0))

    async def fresh(self, *, max_age_s: float = FRESH_S) -> Members:
        """Return the members as of at most ``max_age_s`` ago.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        asked_at = time.monotonic()
        if asked_at - self._looked_at <= max_age_s:
            return self.members
        async with self._lock:
            # Another request may have looked since this one asked.
            if self._looked_at < asked_at - max_age_s:
                await self._look()
        return self.members

    async def follow(self, interval_s: float) -> None:
        """Look for ever, so that a new site's certificate is trusted before it asks anything."""
        while True:
            try:
                await self.fresh(max_age_s=interval_s)
            except StoreError as error:
                log.warning("roster cannot be read error=%s", error)
                await asyncio.sleep(_AWAY_S)
            await asyncio.sleep(interval_s)

    async def _look(self) -> None:
        began = time.monotonic()
        roster = await asyncio.to_thread(self._newest)
        if roster is not None:
            self.members = Members.of(roster)
            self._on_change(self.members)
        self._looked_at = began

    def _newest(self) -> Roster | None:
        found = self._store.list(keys.ROSTERS)
        if not found or found[-1] == keys.roster(self.members.roster.version):
            return None
        return read_document(self._store, found[-1], Roster)


def _certificate_of(entry: RosterEntry) -> str | None:
    if entry.certificate is None:
        return None
    try:
        # Also one that was admitted by an earlier fedloom, which looked at none of this.
        require_site_certificate(entry.certificate, site=entry.site)
        return certificate_sha256(entry.certificate)
    except CampaignError as error:
        log.warning("certificate in the roster is not trusted site=%s error=%s", entry.site, error)
        return None
