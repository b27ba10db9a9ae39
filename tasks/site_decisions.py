"""The decisions of a site's operator, over the files of its folder.

Everything here works without the network: the campaigns that a site knows are those it approved,
those its outbox holds, and those whose digest is typed. A decision takes effect at the next step
of a session that is running; nothing has to be restarted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.errors import CampaignError, StoreUnavailable
from fl_core.privacy.policy_documents import Approval
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site_decision import Ask, Kind, SiteDecision, Standing, decide, standing
from fl_core.updates.outbox import Outbox
from tasks.site_config import DECISIONS, OUTBOX, SiteHome, site_policy

LOOK_S = 0.5
# The store is asked less often than the folder: what ends a hold from there may be late.
ASK_S = 5.0
_DIGITS = frozenset("0123456789abcdef")
_DIGEST = 64


@dataclass(frozen=True, slots=True)
class KnownCampaign:
    """A campaign as the site's folder knows it.

    Attributes:
        digest: Its digest.
        name: Its id, or the first digits of a digest that no approval explains.
    """

    digest: str
    name: str


def known_campaigns(home: SiteHome) -> list[KnownCampaign]:
    """Return the campaigns that the folder knows: approved, or with an exchange; sorted."""
    policy = site_policy(home)
    approvals = home.store("approvals")
    found = (keys.exchange_of(p) for p in outbox_of(home).exchanges(keys.exchanges(policy.dataset)))
    digests = {*policy.campaigns, *(each[0] for each in found if each is not None)}
    known = (KnownCampaign(digest, campaign_name(approvals, digest)) for digest in digests)
    return sorted(known, key=lambda one: (one.name, one.digest))


def campaign_name(approvals: ObjectStore, digest: str) -> str:
    """Return the id of an approved campaign, or the first digits of its digest."""
    key = keys.approval(digest)
    if not exists(approvals, key):
        # Approved by a line in the policy, which knows no name.
        return digest[:12]
    return read_document(approvals, key, Approval).campaign


def find_campaign(home: SiteHome, text: str) -> KnownCampaign:
    """Return the campaign that an operator means by an id or by the digits of a digest.

    Raises:
        CampaignError: None, or several; names what there is.
    """
    known = known_campaigns(home)
    hits = [one for one in known if one.name == text]
    if not hits and _is_digits(text):
        hits = [one for one in known if one.digest.startswith(text)]
    if len(hits) == 1:
        return hits[0]
    if not hits and _is_digits(text) and len(text) == _DIGEST:
        # A campaign may be refused before anybody here has approved it.
        return KnownCampaign(text, text[:12])
    shown = ", ".join(f"{one.name} ({one.digest[:12]})" for one in hits or known) or "none"
    raise CampaignError(
        f"{text!r} is {'several campaigns' if hits else 'no campaign'} of this site, "
        f"expected one of: {shown}",
        hint="a whole digest of 64 digits names any campaign; `fedloom site outbox` lists them",
    )


def outbox_of(home: SiteHome) -> Outbox:
    """Return the site's outbox."""
    return Outbox(home.store(OUTBOX))


def standing_of(home: SiteHome) -> Standing:
    """Return what the site's operator has decided, as it holds now."""
    return standing(home.store(DECISIONS))


def pause(home: SiteHome, *, why: str) -> SiteDecision:
    """Take part in no new round until ``resume``; what was begun is finished."""
    return _decide(home, "pause", Ask(why=why))


def resume(home: SiteHome, *, why: str) -> SiteDecision:
    """Take part in new rounds again."""
    return _decide(home, "resume", Ask(why=why))


def refuse(
    home: SiteHome, campaign: KnownCampaign, *, round_number: int | None, why: str
) -> SiteDecision:
    """Refuse a campaign or one of its rounds; what is in the outbox of it stays there."""
    return _decide(home, "refuse", Ask(campaign.digest, round_number, why=why))


def allow(
    home: SiteHome, campaign: KnownCampaign, *, round_number: int | None, why: str
) -> SiteDecision:
    """Take back a refusal of the same campaign or round.

    Raises:
        CampaignError: There is no such refusal.
    """
    if (campaign.digest, round_number) not in standing_of(home).refused:
        what = campaign.name if round_number is None else f"round {round_number} of {campaign.name}"
        raise CampaignError(f"{what} is not refused, so there is nothing to take back")
    return _decide(home, "allow", Ask(campaign.digest, round_number, why=why))


def leave(home: SiteHome, campaign: KnownCampaign, *, why: str) -> SiteDecision:
    """Leave a campaign for good; its next plan is answered with a signed farewell."""
    return _decide(home, "leave", Ask(campaign.digest, why=why))


def approve_round(home: SiteHome, campaign: KnownCampaign, round_number: int) -> SiteDecision:
    """Approve what a round holds ready, and no other bytes.

    Raises:
        CampaignError: As ``require_held``.
    """
    manifest = require_held(home, campaign, round_number)
    return _decide(home, "approve", Ask(campaign.digest, round_number, manifest))


def require_held(home: SiteHome, campaign: KnownCampaign, round_number: int) -> str:
    """Check that a round waits for the operator's word, and return its manifest's SHA-256.

    Raises:
        CampaignError: Nothing of that round is held, its deadline has passed, or it is refused.
    """
    prefix = keys.exchange(site_policy(home).dataset, campaign.digest, round_number)
    record = outbox_of(home).record(prefix)
    held, manifest = record.notes.get("held"), record.files.get(keys.MANIFEST)
    what = f"round {round_number} of {campaign.name}"
    # Also what was withheld: by a refusal that was taken back, say.
    if record.progress not in {"held", "withheld"} or held is None or manifest is None:
        found = record.progress if record.plan_sha256 else "not in the outbox"
        raise CampaignError(
            f"{what} is {found}, and only what is held can be approved",
            hint="`fedloom site outbox` shows what is held",
        )
    if held.until is not None and datetime.now(UTC) >= held.until:
        raise CampaignError(
            f"{what} could be approved until {held.until.isoformat()}, and that is past; nothing "
            "of it leaves, and it stays charged"
        )
    now = standing_of(home)
    why = now.refusal(campaign.digest, round_number)
    if why:
        is_final = campaign.digest in now.left
        raise CampaignError(
            f"{what} cannot leave: {why}",
            hint="leaving is final; a new campaign is approved anew"
            if is_final
            else "`fedloom site refuse --undo` takes a refusal back",
        )
    return manifest


def _decide(home: SiteHome, kind: Kind, ask: Ask) -> SiteDecision:
    return decide(home.store(DECISIONS), kind, ask, now=datetime.now(UTC))


def _is_digits(text: str) -> bool:
    return 0 < len(text) <= _DIGEST and _DIGITS.issuperset(text)


@dataclass(frozen=True, slots=True)
class Held:
    """An update that waits for the operator.

    Attributes:
        campaign_id: The campaign.
        plan: The plan of the round.
        seen: What ``decision_mark`` said before the update was found to be held.
        ask_from: From when the store may be asked what became of the round.
    """

    campaign_id: str
    plan: RoundPlan
    seen: tuple[int, int]
    ask_from: datetime


def decision_mark(home: SiteHome) -> tuple[int, int]:
    """Return what changes with every decision and every change of the policy."""
    return len(home.store(DECISIONS).list(keys.DECISIONS)), home.policy.stat().st_mtime_ns


def await_decision(
    home: SiteHome, store: ObjectStore, held: Held, *, is_over: Callable[[], bool]
) -> Literal["look", "closed", "over"]:
    """Wait while an update is held, until there is something to look at again.

    Before ``held.ask_from`` only the folder is looked at: the first request after a training tells
    the coordinator when it ended (SOUNDNESS, rule 19).

    Args:
        home: The site's folder.
        store: The campaign's store.
        held: The update.
        is_over: Says whether the campaign run has ended.

    Returns:
        ``look`` after a decision, a change of the policy, or the deadline; ``closed`` if the round
        went on without the site; ``over`` if the campaign run has ended.
    """
    next_ask = max(held.ask_from, datetime.now(UTC) + timedelta(seconds=ASK_S))
    while datetime.now(UTC) < held.plan.deadline and decision_mark(home) == held.seen:
        if datetime.now(UTC) >= next_ask:
            if _is_closed(store, keys.collected(held.campaign_id, held.plan.round)):
                return "closed"
            if is_over():
                return "over"
            next_ask = datetime.now(UTC) + timedelta(seconds=ASK_S)
        time.sleep(LOOK_S)
    return "look"


def _is_closed(store: ObjectStore, key: str) -> bool:
    try:
        return exists(store, key)
    except StoreUnavailable:
        return False
