"""Closing a collection: the answers are frozen once the round's rule says that it goes on.

One list per round, whoever writes it: the charge, the release and the record of the round all go
by it. Sites that were revoked since the plan are left out, and nothing is waited for from them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.roster import latest_roster, read_roster
from fl_core.cohorts.quorum import Closing, Tally, has_quorum, is_closed, shortfall
from fl_core.cohorts.rules import closing_of, declared_share
from fl_core.errors import ObjectMissing
from fl_core.rounds.documents import Collected, QuorumReached, RoundPlan, SiteAnswer
from fl_core.rounds.plan import declared_sizes

NOBODY_LOOKED: Mapping[str, str] = MappingProxyType({})


def close_collection(  # noqa: PLR0913  what a round's end is decided from, by name
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    answers: Mapping[str, SiteAnswer],
    now: datetime,
    seen: Mapping[str, str] = NOBODY_LOOKED,
) -> Collected | None:
    """Freeze the answers once the round's rule says that it goes on; None before that.

    Whoever calls second, also after a crash, gets what was frozen first: later arrivals are
    ignored for good. A site whose keys were withdrawn since the plan is left out, whatever it sent.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        plan: The round's plan.
        answers: Of the sites that have answered.
        now: Time of the caller, UTC.
        seen: What sessions of sites look like from outside, a few words by site; noted with those
            that are missing, unless the campaign has a guarantee.
    """
    key = keys.collected(assembly.campaign.id, plan.round)
    try:
        return read_document(store, key, Collected)
    except ObjectMissing:
        pass
    known = {**answers, **_of_revoked(store, plan)}
    accepted = [site for site, answer in known.items() if answer.status == "accepted"]
    tally, closing = _standing(assembly, store, plan, accepted=accepted, answered=len(known))
    is_enough = has_quorum(tally, closing)
    since_s = _since_quorum(assembly, store, plan, now=now) if is_enough else None
    if not is_closed(tally, closing, late=now >= plan.deadline, since_quorum_s=since_s):
        return None
    # Under a guarantee one code: what became of a session may depend on its site's rows.
    told = seen if assembly.campaign.privacy.none is not None else NOBODY_LOOKED
    missing = {
        site: SiteAnswer(status="missing", reason=told.get(site, "")) for site in plan.cohort
    }
    collected = Collected(
        round=plan.round,
        answers={site: known.get(site, missing[site]) for site in plan.cohort},
        has_quorum=is_enough,
    )
    return write_document(store, key, collected)


def _of_revoked(store: ObjectStore, plan: RoundPlan) -> dict[str, SiteAnswer]:
    # Whoever holds a key that was withdrawn may have signed with it: what it sent counts no more,
    # and what it has not sent is not waited for, also when the site is back with other keys. One
    # that the site itself changed stays good for its round.
    newest = store.list(keys.ROSTERS)[-1:]
    if newest == [keys.roster(plan.roster_version)]:
        return {}
    disowned = latest_roster(store).disowned(read_roster(store, plan.roster_version))
    gone = [site for site in plan.cohort if site in disowned]
    return dict.fromkeys(gone, SiteAnswer(status="rejected", reason="revoked"))


def quorum_missed(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, collected: Collected
) -> str:
    """Say what a round without a quorum lacks, for people; empty where it has one."""
    tally, closing = _standing(
        assembly, store, plan, accepted=collected.accepted, answered=len(collected.answers)
    )
    return shortfall(tally, closing)


def _standing(
    assembly: Assembly,
    store: ObjectStore,
    plan: RoundPlan,
    *,
    accepted: Sequence[str],
    answered: int,
) -> tuple[Tally, Closing]:
    rule, wanted = assembly.campaign.cohort, plan.wanted or len(plan.cohort)
    share = None
    if rule.quorum_share is not None:
        sizes = declared_sizes(read_roster(store, plan.roster_version), plan.cohort)
        share = declared_share(sizes, accepted=accepted, asked=plan.cohort)
    tally = Tally(wanted, len(accepted), len(plan.cohort) - answered, share)
    return tally, closing_of(rule, wanted=wanted, quorum=plan.quorum, grace_s=plan.grace_s)


def _since_quorum(
    assembly: Assembly, store: ObjectStore, plan: RoundPlan, *, now: datetime
) -> float | None:
    if plan.grace_s is None:
        return None
    # Written once, so that the grace time does not begin anew with the next coordinator.
    key = keys.quorum(assembly.campaign.id, plan.round)
    try:
        reached = read_document(store, key, QuorumReached)
    except ObjectMissing:
        reached = write_document(store, key, QuorumReached(round=plan.round, at=now))
    return (now - reached.at).total_seconds()
