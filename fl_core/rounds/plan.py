"""The plan of a round: what every site of the cohort reads before it does anything."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Name, Sha256


class RoundPlan(Document):
    """What is asked in one round; written once, read by all.

    The noise is not in it as an order: each side rebuilds its NoisePlan from the campaign.

    Attributes:
        campaign_digest: Digest of the frozen campaign.
        round: From 1.
        roster_version: Roster whose keys count in this round.
        base_hash: Content hash of the global adapter to start from.
        cohort: Sites that are asked, sorted.
        opened: When the plan was written, UTC.
        deadline: When the round goes on without the rest, UTC.
        code_version: fedloom at the coordinator.
    """

    campaign_digest: Sha256
    round: Annotated[int, Field(ge=1)]
    roster_version: Annotated[int, Field(ge=1)]
    base_hash: Sha256
    cohort: tuple[Name, ...]
    opened: AwareDatetime
    deadline: AwareDatetime
    code_version: str


def is_late(plan: RoundPlan, now: datetime) -> bool:
    """Say whether the deadline of a plan has passed."""
    return now >= plan.deadline
