"""Opening: the campaign is frozen in the store, a round gets its plan.

A second caller loses the race and reads what the first one wrote, so there is one campaign per id,
one cohort per round and one deadline, whoever asks and however often.
"""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import TypeVar

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly, assemble, site_weights
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.roster import Roster, latest_roster, read_roster
from fl_core.cohorts.rules import draw_cohort, require_speed_says_nothing
from fl_core.errors import (
    CampaignError,
    IncompatibleParts,
    ObjectCorrupt,
    ObjectMissing,
    RoundError,
)
from fl_core.rounds.adapters import write_initial_adapter
from fl_core.rounds.collection import MAX_DOCUMENT_BYTES
from fl_core.rounds.documents import Collected, Outcome, RoundChoice, RoundPlan
from fl_core.rounds.upload_time import upload_time

D = TypeVar("D", bound=Document)
log = logging.getLogger(__name__)

CAMPAIGNS_OWN = RoundChoice()
NOT_ASKED_AGAIN = frozenset({"budget", "left"})
"""Reasons to decline that hold for every later round of a campaign."""


def open_campaign(store: ObjectStore, campaign: Campaign) -> Assembly:
    """Freeze a campaign in the store, with the adapter that round 1 starts from.

    Raises:
        CampaignError: The campaign is not locked, or its id names another campaign.
        IncompatibleParts: Its parts cannot keep its promise.
    """
    assembly = assemble(campaign)
    require_free_id(store, campaign)
    write_initial_adapter(store, campaign)
    write_document(store, keys.campaign(campaign.id), campaign)
    require_free_id(store, campaign)
    return assembly


def require_free_id(store: ObjectStore, campaign: Campaign) -> None:
    """Check that a locked campaign's id names no other campaign in the store.

    Raises:
        CampaignError: It does.
    """
    try:
        stored = read_document(store, keys.campaign(campaign.id), Campaign)
    except ObjectMissing:
        return
    if stored.digest != campaign.digest:
        raise CampaignError(
            f"id {campaign.id!r} is taken by another campaign (digest {stored.digest[:16]}, "
            f"this one has {campaign.digest[:16]})",
            hint="a changed campaign needs an id of its own; `parent` says what it goes on from",
        )


def read_assembly(store: ObjectStore, campaign_id: str) -> Assembly:
    """Read a frozen campaign and build its parts.

    Raises:
        CampaignError: No campaign of that id.
    """
    try:
        key = keys.campaign(campaign_id)
        return assemble(read_document(store, key, Campaign, max_bytes=MAX_DOCUMENT_BYTES))
    except ObjectMissing as error:
        raise CampaignError(
            f"no campaign {campaign_id!r} in the store",
            hint="`fedloom status` lists the campaigns that are there",
        ) from error


def open_round(
    assembly: Assembly,
    store: ObjectStore,
    *,
    round_number: int,
    now: datetime,
    choice: RoundChoice = CAMPAIGNS_OWN,
) -> RoundPlan:
    """Return the round's plan, writing it if there is none.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        round_number: From 1 to max_rounds.
        now: Time of the caller, UTC; the deadline counts from it.
        choice: What the run chose; a plan that is there keeps what it says.

    Raises:
        RoundError: The round is outside the campaign, or no site is left to ask.
        CampaignError: The choice is laxer than the campaign, or does not fit it.
        IncompatibleParts: The quorum goes by declared sizes and a site declared none.
    """
    campaign = assembly.campaign
    if not 1 <= round_number <= campaign.max_rounds:
        raise RoundError(
            f"round {round_number} is outside campaign {campaign.id!r} "
            f"with max_rounds {campaign.max_rounds}"
        )
    key = keys.plan(campaign.id, round_number)
    try:
        return read_document(store, key, RoundPlan)
    except ObjectMissing:
        require_choice_fits(campaign, choice)
        plan = _draw_plan(assembly, store, round_number=round_number, now=now, choice=choice)
        return write_document(store, key, plan)


def require_choice_fits(campaign: Campaign, choice: RoundChoice) -> None:
    """Check that what a run chose keeps what the campaign promises.

    Raises:
        CampaignError: A laxer quorum, one that nobody can reach, times that do not fit each other,
            or a grace time that a guarantee does not allow.
    """
    rule = campaign.cohort
    if choice.quorum is not None:
        least, most = rule.quorum or 1, len(campaign.sites)
        if not least <= choice.quorum <= most:
            raise CampaignError(
                f"a quorum of {choice.quorum} was chosen for this run and campaign "
                f"{campaign.id!r} allows {least} to {most}; a run may ask for more, never for less"
            )
    if choice.grace_s is not None:
        require_speed_says_nothing(campaign, name="grace_s")
        if choice.grace_s >= rule.deadline_s:
            raise CampaignError(
                f"a grace time of {choice.grace_s:g} s was chosen for this run and the campaign "
                f"ends every round after {rule.deadline_s:g} s; choose a shorter one"
            )


def _draw_plan(
    assembly: Assembly,
    store: ObjectStore,
    *,
    round_number: int,
    now: datetime,
    choice: RoundChoice,
) -> RoundPlan:
    campaign = assembly.campaign
    rule = campaign.cohort
    available = available_sites(assembly, store)
    if not available:
        raise RoundError(f"campaign {campaign.id!r} has no site to ask in round {round_number}")
    roster = latest_roster(store)
    cohort, wanted = draw_cohort(
        assembly.selection,
        available,
        coins=f"{assembly.digest}/{round_number}",
        over_select=rule.over_select,
    )
    if rule.quorum_share is not None:
        declared_sizes(roster, cohort)
    most = wanted or len(cohort)
    if choice.quorum is not None and choice.quorum > most:
        raise CampaignError(
            f"a quorum of {choice.quorum} was chosen for this run and round {round_number} wants "
            f"{most} updates; choose a lower one"
        )
    return RoundPlan(
        campaign_digest=assembly.digest,
        round=round_number,
        roster_version=roster.version,
        base_hash=current_adapter(store, campaign, before=round_number),
        cohort=cohort,
        opened=now,
        deadline=now + timedelta(seconds=rule.deadline_s),
        upload_at=upload_time(campaign, now),
        wanted=wanted,
        quorum=choice.quorum,
        grace_s=rule.grace_s if choice.grace_s is None else choice.grace_s,
        code_version=version("fedloom"),
    )


def declared_sizes(roster: Roster, sites: Iterable[str]) -> dict[str, int]:
    """Return the public sizes that sites declared when they were enrolled.

    Raises:
        IncompatibleParts: One declared none.
    """
    sizes: dict[str, int] = {}
    for site in sites:
        entry = roster.entry(site)
        if entry is None or entry.declared_examples is None:
            raise IncompatibleParts(
                f"cohort.quorum_share goes by declared sizes and site {site!r} declared none; "
                "enrol it with declared_examples, or use cohort.quorum alone"
            )
        sizes[site] = entry.declared_examples
    return sizes


def available_sites(assembly: Assembly, store: ObjectStore) -> list[str]:
    """Return the sites that may be asked: enrolled, with budget left, and not gone for good.

    What a key said that does not stand for the site any more does not keep it out: whoever stole
    it may have said so. A site that is gone says it again under its next key.
    """
    campaign, roster = assembly.campaign, latest_roster(store)
    spent: set[str] = set()
    for collected in _earlier(store, campaign.id):
        gone = {
            site
            for site, answer in collected.answers.items()
            if answer.status == "declined" and answer.reason in NOT_ASKED_AGAIN
        }
        key = keys.plan(campaign.id, collected.round)
        plan = _readable(store, key, RoundPlan) if gone else None
        if plan is not None:
            then = _signing_keys(read_roster(store, plan.roster_version), gone)
            now = _signing_keys(roster, gone)
            spent.update(site for site in gone if then[site] == now[site])
    return sorted(site for site in site_weights(campaign, roster) if site not in spent)


def _signing_keys(roster: Roster, sites: Iterable[str]) -> dict[str, str | None]:
    entries = {site: roster.entry(site) for site in sites}
    return {site: None if entry is None else entry.signing_key for site, entry in entries.items()}


def current_adapter(store: ObjectStore, campaign: Campaign, *, before: int) -> str:
    """Return the hash of the adapter that round ``before`` starts from."""
    for number in range(before - 1, 0, -1):
        outcome = read_outcome(store, campaign.id, number)
        if outcome is not None and outcome.result_hash is not None:
            return outcome.result_hash
    return write_initial_adapter(store, campaign)


def read_outcome(store: ObjectStore, campaign_id: str, round_number: int) -> Outcome | None:
    """Return the round's outcome, or None while it is open."""
    try:
        return read_document(store, keys.outcome(campaign_id, round_number), Outcome)
    except ObjectMissing:
        return None


def _earlier(store: ObjectStore, campaign_id: str) -> list[Collected]:
    found = [key for key in store.list(keys.rounds(campaign_id)) if key.endswith("/collected.json")]
    own = [key for key in found if keys.round_of(key) is not None]
    return [read for key in own if (read := _readable(store, key, Collected)) is not None]


def _readable(store: ObjectStore, key: str, model: type[D]) -> D | None:
    try:
        return read_document(store, key, model)
    except ObjectCorrupt as error:
        # Its own round is closed as failed; the later ones must not end on it too.
        log.warning("document of a round is not readable and counts for nothing: %s", error)
        return None
