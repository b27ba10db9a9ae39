"""The documents of a round, in the order in which they are written.

plan -> (updates of the sites) -> collected -> charge -> outcome -> evaluation. Each is written
once; a step that finds its document goes on from what is stored, never from what it has in hand.
"""

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Name, Sha256
from fl_core.updates.manifest import ErrorClass
from fl_core.updates.records import Charge

RoundNumber = Annotated[int, Field(ge=1)]
# A site writes it into its log, so it can be nothing but a version.
CodeVersion = Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9.+!_-]*$")]


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
        upload_at: When all sites upload, UTC; None when they are ready.
        wanted: Accepted updates at which the round goes on; None where it asks no more than that.
        quorum: Accepted updates that the run asks for, where that is more than the campaign does.
        grace_s: Seconds that the rest have after the quorum; None is until the deadline.
        code_version: fedloom at the coordinator.
    """

    campaign_digest: Sha256
    round: RoundNumber
    roster_version: Annotated[int, Field(ge=1)]
    base_hash: Sha256
    cohort: Annotated[tuple[Name, ...], Field(min_length=1)]
    opened: AwareDatetime
    deadline: AwareDatetime
    upload_at: AwareDatetime | None = None
    wanted: Annotated[int, Field(ge=1)] | None = None
    quorum: Annotated[int, Field(ge=1)] | None = None
    grace_s: Annotated[float, Field(ge=0)] | None = None
    code_version: CodeVersion


class RoundChoice(Document):
    """What a run may choose for the rounds it opens, without changing the frozen campaign.

    A run may be stricter about the quorum, never laxer. The deadline is the campaign's alone, since
    the sites approved it. A choice counts for rounds that the run opens: a plan that is there keeps
    what it says.

    Attributes:
        quorum: Smallest number of accepted updates; None is the campaign's.
        grace_s: Seconds that the rest have after the quorum; None is the campaign's.
    """

    quorum: Annotated[int, Field(ge=1)] | None = None
    grace_s: Annotated[float, Field(ge=0)] | None = None


class QuorumReached(Document):
    """When a round's quorum was first seen; its grace time counts from then, whoever looks.

    Attributes:
        round: From 1.
        at: By the clock of the coordinator that saw it, UTC.
    """

    round: RoundNumber
    at: AwareDatetime


class SiteAnswer(Document):
    """What became of one site in one round.

    Attributes:
        status: ``accepted``; ``rejected`` (an update failed a check); ``declined`` (the site said
            no); ``missing`` (no answer when the round went on).
        reason: Rejection reason, or the site's reason to decline; of a missing site what its
            session looked like from outside, if anybody looked.
        rules: Names of broken gate rules or policy fields.
        error: Class of what went wrong at the site, never its text; under NoPrivacy only.
        manifest_sha256: Hash of the signed manifest of an accepted update.
        payload_bytes: Bytes of its payload.
    """

    status: Literal["accepted", "rejected", "declined", "missing"]
    reason: str = ""
    rules: tuple[str, ...] = ()
    error: ErrorClass | None = None
    manifest_sha256: Sha256 | None = None
    payload_bytes: int = 0


class Collected(Document):
    """The frozen list of answers: one set of contributors per charge and per release.

    Attributes:
        round: From 1.
        answers: By site, every site of the cohort.
        has_quorum: Whether enough updates were accepted.
    """

    round: RoundNumber
    answers: dict[Name, SiteAnswer]
    has_quorum: bool

    @property
    def accepted(self) -> list[str]:
        """Sites whose updates are in, sorted."""
        return sorted(s for s, answer in self.answers.items() if answer.status == "accepted")


class RoundCharge(Document):
    """The charges that pay for a release.

    Attributes:
        round: From 1.
        sites: What each accepted site charged for one unit of its rows; empty under NoPrivacy.
        clients: What each charged for its whole data, under local ClientDp.
        federation: What the coordinator charged on the federation's ledger, under central ClientDp.
        refused: Why nothing was charged there although it had to be; nothing is released then.
    """

    round: RoundNumber
    sites: dict[Name, Charge]
    clients: dict[Name, Charge] = Field(default_factory=dict)
    federation: Charge | None = None
    refused: Literal["budget"] | None = None


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
        noise_stddev: Stddev per coordinate of the noise added at the release, in units of the
            aggregate; None where the sites add it.
        opened: When the plan was written.
        closed: When the outcome was written; the timestamp of every metric of the round.
    """

    round: RoundNumber
    status: Literal["released", "skipped", "failed"]
    reason: str = ""
    base_hash: Sha256
    result_hash: Sha256 | None = None
    contributors: tuple[Name, ...] = ()
    sensitivity: float | None = None
    noise_stddev: float | None = None
    opened: AwareDatetime
    closed: AwareDatetime

    @model_validator(mode="after")
    def _released_by_somebody(self) -> Self:
        # An adapter that nobody trained must never pass for a release.
        if self.status == "released" and not (self.contributors and self.result_hash):
            msg = "a released round names its adapter and at least one contributor"
            raise ValueError(msg)
        return self
