"""The roster: the sites' public keys, numbered and write-once.

Enrolling writes the next number; no number is ever written twice, so two coordinators that enrol
at once get two rosters, one after the other.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, read_document, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError

PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class RosterEntry(Document):
    """One site as the coordinator knows it.

    Attributes:
        site: Name, as campaigns use it.
        signing_key: Ed25519 public key, hex.
        declared_examples: Public size, typed by its owner, rounded to a power of two; or None.
        certificate: The site's TLS certificate, PEM; None for a site that uses no gateway.
        since: When the site was enrolled, UTC.
        revoked: When its key was withdrawn, or None.
    """

    site: Name
    signing_key: PublicKey
    declared_examples: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    certificate: Annotated[str, Field(max_length=4096)] | None = None
    since: datetime
    revoked: datetime | None = None


class Roster(Document):
    """All enrolled sites; ``version`` counts from 1, 0 is the empty roster before any."""

    version: Annotated[int, Field(ge=0)]
    entries: tuple[RosterEntry, ...] = ()

    def entry(self, site: str) -> RosterEntry | None:
        """Return the site's entry that is not revoked, or None."""
        for entry in self.entries:
            if entry.site == site and entry.revoked is None:
                return entry
        return None


def read_roster(store: ObjectStore, version: int) -> Roster:
    """Read one numbered roster; 0 is empty."""
    if version == 0:
        return Roster(version=0)
    return read_document(store, keys.roster(version), Roster)


def latest_roster(store: ObjectStore) -> Roster:
    """Read the roster with the highest number."""
    found = store.list(keys.ROSTERS)
    return read_document(store, found[-1], Roster) if found else Roster(version=0)


def enrol(store: ObjectStore, entry: RosterEntry) -> Roster:
    """Admit a site: write the next roster with its key.

    Enrolling the same key again changes nothing.

    Raises:
        CampaignError: The name is enrolled with another key.
    """
    while True:
        roster = latest_roster(store)
        known = roster.entry(entry.site)
        if known is not None and known.signing_key == entry.signing_key:
            return roster
        if known is not None:
            raise CampaignError(
                f"site {entry.site!r} is enrolled with another key ({known.signing_key[:16]}...)",
                hint="compare fingerprints with the site's operator; another key needs a new name",
            )
        longer = Roster(version=roster.version + 1, entries=(*roster.entries, entry))
        if store.put_once(keys.roster(longer.version), to_bytes(longer)):
            return longer
