"""The roster: the sites' public keys, numbered and write-once.

Enrolling, revoking and changing keys write the next number; no number is ever written twice, so two
coordinators that write at once get two rosters, one after the other. Nothing is taken out: a site
whose key changed has its old entry, revoked, beside the new one. A round's plan names the number
that it was drawn from, so what an old key signed for an old round keeps verifying for ever.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, read_document, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError

PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Withdrawal = Literal["changed", "replaced", "revoked"]
Identify = Literal["certificate", "token"]


class RosterEntry(Document):
    """One site as the coordinator knows it.

    Attributes:
        site: Name, as campaigns use it.
        signing_key: Ed25519 public key, hex.
        declared_examples: Public size, typed by its owner, rounded to a power of two; or None.
        certificate: The site's TLS certificate, PEM; None for a site that uses no gateway.
        identify: How the site shows the gateway who it is; None for a site that uses no gateway,
            and in rosters of before.
        since: When these keys were admitted, UTC.
        revoked: When they were withdrawn, or None.
        reason: Why they were withdrawn, in the words of whoever did; sites can read it.
        withdrawal: How they ended: ``changed`` by whoever held them, ``replaced`` or ``revoked`` by
            a person at the coordinator; None for keys that stand, and in rosters of before.
    """

    site: Name
    signing_key: PublicKey
    declared_examples: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    certificate: Annotated[str, Field(max_length=4096)] | None = None
    identify: Identify | None = None
    since: datetime
    revoked: datetime | None = None
    reason: Annotated[str, Field(max_length=200)] | None = None
    withdrawal: Withdrawal | None = None

    @property
    def signs_requests(self) -> bool:
        """Whether the signing key opens the gateway; not where a certificate alone does."""
        return self.identify == "token" or (self.identify is None and self.certificate is None)


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

    def history(self, site: str) -> tuple[RosterEntry, ...]:
        """Return all entries that a site ever had, oldest first."""
        return tuple(entry for entry in self.entries if entry.site == site)

    def disowned(self, earlier: "Roster") -> tuple[str, ...]:
        """Return the sites of an earlier roster whose keys of then nobody vouches for any more.

        A site that changed its keys itself still vouches for the old ones; a person who revoked or
        replaced them does not, unless the same signing key was admitted again.
        """
        return tuple(site for site in earlier.names() if self._is_disowned(earlier, site))

    def _is_disowned(self, earlier: "Roster", site: str) -> bool:
        then, now = earlier.entry(site), self.entry(site)
        if then is None or (now is not None and now.signing_key == then.signing_key):
            return False
        # Nothing is taken out of a roster, so the entries of since stand behind those of then.
        since = self.history(site)[len(earlier.history(site)) - 1 :]
        return now is None or any(
            each.revoked is not None and each.withdrawal != "changed" for each in since
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of all sites that are enrolled and not revoked."""
        return tuple(entry.site for entry in self.entries if entry.revoked is None)


def read_roster(store: ObjectStore, version: int) -> Roster:
    """Read one numbered roster; 0 is empty."""
    if version == 0:
        return Roster(version=0)
    return read_document(store, keys.roster(version), Roster)


def latest_roster(store: ObjectStore) -> Roster:
    """Read the roster with the highest number."""
    found = store.list(keys.ROSTERS)
    return read_document(store, found[-1], Roster) if found else Roster(version=0)


def enrol(store: ObjectStore, entry: RosterEntry, *, is_confirmed: bool = False) -> Roster:
    """Admit a site: write the next roster with its keys.

    The same entry again changes nothing. The same signing key with another certificate, declared
    size or way to identify takes the place of the entry before it: whoever holds the key says so.

    Args:
        store: The campaigns' store.
        entry: The site's keys.
        is_confirmed: A person has confirmed with the site's operator that the name was withdrawn
            or its key is lost, and that these keys are to stand for it from now on.

    Raises:
        CampaignError: The name stands for another key, or was withdrawn, and nobody confirmed; or
            a key or certificate was withdrawn under this name before.
    """

    def changed(roster: Roster) -> Roster:
        known, earlier = roster.entry(entry.site), roster.history(entry.site)
        if known is not None and _keys_of(known) == _keys_of(entry):
            return roster
        is_same_key = known is not None and known.signing_key == entry.signing_key
        if not is_same_key:
            _require_confirmed(known, earlier, is_confirmed=is_confirmed)
        _require_fresh(roster, entry)
        if is_same_key:
            return _replaced(roster, entry, why="certificate or declared size changed")
        return _replaced(roster, entry, why="enrolled again", how="replaced")

    return _write_next(store, changed)


def revoke(store: ObjectStore, site: str, *, now: datetime, reason: str) -> Roster:
    """Withdraw a site's keys: write the next roster with its entry revoked.

    Raises:
        CampaignError: No such site, or it is revoked already.
    """

    def changed(roster: Roster) -> Roster:
        if roster.entry(site) is None:
            was = " any more" if roster.history(site) else ""
            raise CampaignError(
                f"no site {site!r} is enrolled{was}", hint="`fedloom sites` lists all of them"
            )
        withdrawn = {"revoked": now, "reason": reason, "withdrawal": "revoked"}
        return _longer(roster, _without(roster, site, withdrawn))

    return _write_next(store, changed)


def rotate(store: ObjectStore, entry: RosterEntry, *, old_key: str) -> Roster:
    """Admit the next keys of an enrolled site; the caller has checked that the old key signed them.

    The same entry again changes nothing.

    Raises:
        CampaignError: The site is not enrolled with ``old_key``; or a key or certificate was
            withdrawn under this name before.
    """

    def changed(roster: Roster) -> Roster:
        known = roster.entry(entry.site)
        if known is not None and _keys_of(known) == _keys_of(entry):
            return roster
        if known is None or known.signing_key != old_key:
            found = "not enrolled" if known is None else "enrolled with another key"
            raise CampaignError(
                f"site {entry.site!r} is {found}, expected the key that signed this change",
                hint="ask the site's operator to run `fedloom site rotate --abandon`, then "
                "`fedloom site rotate` again, or to enrol",
            )
        _require_fresh(roster, entry)
        return _replaced(roster, entry, why="keys changed by the site")

    return _write_next(store, changed)


def _write_next(store: ObjectStore, change: Callable[[Roster], Roster]) -> Roster:
    while True:
        roster = latest_roster(store)
        longer = change(roster)
        if longer.version == roster.version:
            return roster
        if store.put_once(keys.roster(longer.version), to_bytes(longer)):
            return longer


def _replaced(
    roster: Roster, entry: RosterEntry, *, why: str, how: Withdrawal = "changed"
) -> Roster:
    withdrawn = {"revoked": entry.since, "reason": why, "withdrawal": how}
    return _longer(roster, (*_without(roster, entry.site, withdrawn), entry))


def _longer(roster: Roster, entries: tuple[RosterEntry, ...]) -> Roster:
    return Roster(version=roster.version + 1, entries=entries)


def _without(roster: Roster, site: str, withdrawn: Mapping[str, object]) -> tuple[RosterEntry, ...]:
    return tuple(
        each.model_copy(update=withdrawn) if each.site == site and each.revoked is None else each
        for each in roster.entries
    )


def _keys_of(entry: RosterEntry) -> tuple[str, str | None, str | None, int | None]:
    return entry.signing_key, entry.certificate, entry.identify, entry.declared_examples


def _require_confirmed(
    known: RosterEntry | None, earlier: tuple[RosterEntry, ...], *, is_confirmed: bool
) -> None:
    if is_confirmed or not earlier:
        return
    last = earlier[-1]
    state = (
        f"was revoked on {last.revoked:%Y-%m-%d}"
        if known is None
        else f"is enrolled with another key ({known.signing_key[:16]}...)"
    )
    raise CampaignError(
        f"site {last.site!r} {state}, expected a name that stands for nobody",
        hint="`fedloom rotate` takes a change that the old key signed; if that key is lost or was "
        "withdrawn, confirm by voice with the site's operator and enrol with --replace",
    )


def _require_fresh(roster: Roster, entry: RosterEntry) -> None:
    """Refuse keys that another site has, or that this site had and gave up.

    A certificate is public, so a second site could name it and be taken for the first.
    """
    own, known = roster.history(entry.site), roster.entry(entry.site)
    # A site that was revoked as a whole may come back with the keys that it had last.
    last = known or (own[-1] if own else None)
    for each in roster.entries:
        is_own = each.site == entry.site
        same = [
            what
            for what in ("signing_key", "certificate")
            if (value := getattr(entry, what)) is not None
            and value == getattr(each, what)
            and not (is_own and last is not None and value == getattr(last, what))
        ]
        if same:
            whose = "was withdrawn for this site before" if is_own else "is another site's"
            raise CampaignError(
                f"the {same[0].replace('_', ' ')} of site {entry.site!r} {whose}, expected one "
                "that was never used",
                hint="`fedloom site rotate` at the site makes new ones, after `--abandon` where a "
                "change is pending",
            )
