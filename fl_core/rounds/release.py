"""The release of a round: the aggregate becomes the next adapter, once."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Name, Sha256


class Outcome(Document):
    """How a round ended; its presence closes the round.

    Attributes:
        round: From 1.
        status: ``released``, ``skipped`` (too few sites) or ``failed``.
        reason: Why it was skipped or failed; empty when released.
        base_hash: Adapter that the round started from.
        result_hash: Adapter that it made; None unless released.
        contributors: Sites whose updates went in.
        sensitivity: L2 sensitivity of the aggregate; None is unbounded.
        noise_stddev: Noise added at the release; None where the sites add it.
        opened: When the plan was written.
        closed: When the outcome was written; the timestamp of every metric of the round.
    """

    round: Annotated[int, Field(ge=1)]
    status: Literal["released", "skipped", "failed"]
    reason: str = ""
    base_hash: Sha256
    result_hash: Sha256 | None = None
    contributors: tuple[Name, ...] = ()
    sensitivity: float | None = None
    noise_stddev: float | None = None
    opened: AwareDatetime
    closed: AwareDatetime
