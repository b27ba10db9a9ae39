"""What the coordinator's store says of its sites: keys, versions, how many rounds they answered.

Together with what Prefect knows of their workers it is the table of `fedloom sites`. A site is
judged by what it left in the store, so the table is right also where Prefect is away, except for
who is there at this moment.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import Roster, RosterEntry, latest_roster
from fl_core.errors import FedloomError, StoreUnavailable
from fl_core.rounds.documents import Collected, RoundPlan
from fl_core.rounds.plan import read_assembly
from fl_core.rounds.status import next_round, round_numbers
from fl_core.updates.signing import fingerprint
from tasks.hello import Hello, welcome
from tasks.said_hellos import latest_hello

_ANSWERED = frozenset({"accepted", "declined", "rejected"})


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """One site as the store knows it.

    Attributes:
        entry: Its last entry in the roster.
        hello: What it last said of itself; None before any.
        complaints: What does not fit in that.
        asked: Rounds whose plan names it, over all campaigns.
        answered: Those that it answered, with an update or a refusal.
        due: Open rounds that wait for it, as ``campaign/round``.
    """

    entry: RosterEntry
    hello: Hello | None = None
    complaints: tuple[str, ...] = ()
    asked: int = 0
    answered: int = 0
    due: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What two people compare aloud."""
        return fingerprint(self.entry.signing_key)


@dataclass(frozen=True, slots=True)
class Naming:
    """Campaigns of a store, seen from one site.

    Attributes:
        named: Ids of those that go on and name it.
        others: Ids of those that go on without it.
        unjudged: Of those that could not be judged here, id and reason.
    """

    named: tuple[str, ...]
    others: tuple[str, ...]
    unjudged: Mapping[str, str]


def site_facts(store: ObjectStore) -> list[SiteFacts]:
    """Return every site that was ever enrolled, by name.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    roster = latest_roster(store)
    counts = _count_rounds(store)
    return [
        _facts(store, _last_entry(roster, site), counts)
        for site in sorted({entry.site for entry in roster.entries})
    ]


def state_of(facts: SiteFacts, *, campaign: str | None, is_online: bool | None) -> str:
    """Return what a site does, in words for a table.

    Args:
        facts: What the store says.
        campaign: Campaign of the session that its worker holds.
        is_online: Whether its worker is there; None where Prefect could not be asked.
    """
    if facts.entry.revoked is not None:
        return "revoked"
    if facts.complaints:
        return "versions do not fit"
    if is_online is False:
        return f"away, {facts.due[0]} waits" if facts.due else "away"
    if facts.due:
        return f"training due in {facts.due[0]}"
    if campaign is not None:
        return f"in session of {campaign}"
    return "unknown" if is_online is None else "idle"


def campaigns_of(store: ObjectStore, site: str) -> Naming:
    """Return which campaigns that go on name a site; one that cannot be judged stops no other.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    named: list[str] = []
    others: list[str] = []
    unjudged: dict[str, str] = {}
    for campaign_id in filter(None, map(keys.campaign_id_of, sorted(store.list("campaigns/")))):
        try:
            assembly = read_assembly(store, campaign_id)
            goes_on = isinstance(next_round(assembly, store), int)
        except StoreUnavailable:
            raise
        except FedloomError as error:
            # Of a part that is not installed here, or of a document that is too old or damaged.
            unjudged[campaign_id] = str(error)
            continue
        if goes_on:
            (named if site in assembly.campaign.sites else others).append(campaign_id)
    return Naming(tuple(named), tuple(others), unjudged)


@dataclass(slots=True)
class _Counts:
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    due: dict[str, list[str]] = field(default_factory=dict)


def _count_rounds(store: ObjectStore) -> _Counts:
    counts = _Counts()
    present = frozenset(store.list("campaigns/"))
    for campaign_id in filter(None, map(keys.campaign_id_of, sorted(present))):
        for number in round_numbers(store, campaign_id):
            plan = read_document(store, keys.plan(campaign_id, number), RoundPlan)
            answered = _answered(store, campaign_id, plan, present=present)
            counts.asked.update(plan.cohort)
            counts.answered.update(answered)
            closing = {keys.collected(campaign_id, number), keys.outcome(campaign_id, number)}
            if closing.isdisjoint(present):
                for site in set(plan.cohort) - answered:
                    counts.due.setdefault(site, []).append(f"{campaign_id}/{number}")
    return counts


def _answered(
    store: ObjectStore, campaign_id: str, plan: RoundPlan, *, present: frozenset[str]
) -> set[str]:
    """Return who answered a round, by the frozen list or, while it is open, by what is there."""
    key = keys.collected(campaign_id, plan.round)
    if key in present:
        answers = read_document(store, key, Collected).answers
        return {site for site, answer in answers.items() if answer.status in _ANSWERED}
    return {
        site
        for site in plan.cohort
        if not present.isdisjoint(
            (
                keys.manifest(campaign_id, plan.round, site),
                keys.declined(campaign_id, plan.round, site),
            )
        )
    }


def _last_entry(roster: Roster, site: str) -> RosterEntry:
    return roster.entry(site) or roster.history(site)[-1]


def _facts(store: ObjectStore, entry: RosterEntry, counts: _Counts) -> SiteFacts:
    said = latest_hello(store, entry.site)
    hello = None if said is None else said.hello
    return SiteFacts(
        entry=entry,
        hello=hello,
        complaints=() if hello is None else welcome(hello).complaints,
        asked=counts.asked[entry.site],
        answered=counts.answered[entry.site],
        due=tuple(counts.due.get(entry.site, ())),
    )
