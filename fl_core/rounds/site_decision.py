"""What a site's operator decided: pause, resume, refuse, allow, approve, leave.

Every decision is a numbered write-once document in the site's own folder, so it needs no network,
stands after a crash, and the list of them is the record of who decided what and when. What holds
now follows from all of them in order. A running session reads them at every step of a round.

A decision that comes before training answers with a reason, for it cannot depend on what a
training of private rows gave. Once training has begun an operator may have looked at what came of
it, so from there on a decision shows in nothing but the absence of an update, which is also what a
cut link looks like (SOUNDNESS, rule 18).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, from_bytes, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.specs import Line, Sha256
from fl_core.errors import ObjectCorrupt

Kind = Literal["pause", "resume", "refuse", "allow", "approve", "leave"]


class SiteDecision(Document):
    """One decision of the site's operator; stays at the site.

    Attributes:
        seq: From 1, without gaps.
        kind: ``pause`` and ``resume`` are about every campaign; ``refuse`` and its undoing
            ``allow`` about a campaign or one round of it; ``approve`` about what one round holds
            ready; ``leave`` about a campaign, for good.
        time: When, UTC.
        campaign_digest: The campaign; None for ``pause`` and ``resume``.
        round: The round; None where all rounds are meant.
        manifest_sha256: Of the manifest that was approved, which covers every byte that leaves.
        why: The operator's own words.
    """

    seq: Annotated[int, Field(ge=1)]
    kind: Kind
    time: AwareDatetime
    campaign_digest: Sha256 | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    manifest_sha256: Sha256 | None = None
    why: Annotated[Line, Field(max_length=500)] = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a decision is about.

    Attributes:
        campaign_digest: The campaign; None for all.
        round: The round; None for all.
        manifest_sha256: Of the manifest that is approved; None for any other decision.
        why: The operator's own words.
    """

    campaign_digest: str | None = None
    round: int | None = None
    manifest_sha256: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds now.

    Attributes:
        count: How many decisions it follows from.
        is_paused: Whether no new round is taken part in.
        refused: Refused (digest, round); round None for the whole campaign.
        approved: SHA-256 of the approved manifest by (digest, round).
        left: Digests of campaigns that the site has left.
    """

    count: int = 0
    is_paused: bool = False
    refused: frozenset[tuple[str, int | None]] = frozenset()
    approved: tuple[tuple[str, int, str], ...] = ()
    left: frozenset[str] = frozenset()

    def refusal(self, campaign_digest: str, round_number: int) -> str:
        """Return why a round may not leave the site, whatever its state; empty if it may."""
        if campaign_digest in self.left:
            return "the site has left the campaign"
        if (campaign_digest, None) in self.refused:
            return "its operator refused the campaign"
        if (campaign_digest, round_number) in self.refused:
            return "its operator refused the round"
        return ""

    def is_approved(self, campaign_digest: str, round_number: int, manifest_sha256: str) -> bool:
        """Say whether exactly these bytes were approved for a round."""
        return (campaign_digest, round_number, manifest_sha256) in self.approved


def decide(store: ObjectStore, kind: Kind, ask: Ask, *, now: datetime) -> SiteDecision:
    """Write down one decision after all that are there.

    Args:
        store: The site's own store of decisions.
        kind: What is decided.
        ask: What it is about.
        now: When, UTC.
    """
    while True:
        decision = SiteDecision(
            seq=len(decisions(store)) + 1,
            kind=kind,
            time=now,
            campaign_digest=ask.campaign_digest,
            round=ask.round,
            manifest_sha256=ask.manifest_sha256,
            why=ask.why,
        )
        if store.put_once(keys.decision(decision.seq), to_bytes(decision)):
            return decision


def decisions(store: ObjectStore) -> list[SiteDecision]:
    """Return all decisions in order.

    Raises:
        ObjectCorrupt: One is missing, or is not what its name says.
    """
    found = []
    for number, key in enumerate(store.list(keys.DECISIONS), start=1):
        decision = from_bytes(SiteDecision, store.get(key), what=key)
        if key != keys.decision(number) or decision.seq != number:
            raise ObjectCorrupt(
                f"{key} is not decision {number} of this site; nothing is sent until the folder "
                "`decisions` is whole again"
            )
        found.append(decision)
    return found


def standing(store: ObjectStore | None) -> Standing:
    """Return what holds now; a site without a store of decisions has decided nothing.

    Raises:
        ObjectCorrupt: As ``decisions``.
    """
    made = [] if store is None else decisions(store)
    is_paused, refused, left = False, set[tuple[str, int | None]](), set[str]()
    approved: list[tuple[str, int, str]] = []
    for one in made:
        about = (one.campaign_digest or "", one.round)
        match one.kind:
            case "pause" | "resume":
                is_paused = one.kind == "pause"
            case "refuse":
                refused.add(about)
            case "allow":
                refused.discard(about)
            case "leave":
                left.add(about[0])
            case "approve":
                approved.append((about[0], one.round or 0, one.manifest_sha256 or ""))
    return Standing(len(made), is_paused, frozenset(refused), tuple(approved), frozenset(left))
