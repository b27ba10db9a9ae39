"""What an audit found, as a document.

An audit runs the product's own private training and tries to find out what it should not: it gives
an empirical *lower* bound on epsilon beside the claimed *upper* one. A lower bound under the claim
proves nothing but that this attack was not good enough, so the document states how far the audit
could have come at all (``ceiling``), and says "cannot refute" where that is under the claim. It
speaks of the audited run only (SOUNDNESS, rule 23), and no field is ever called epsilon but the
claim.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Line, Name, Sha256

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[float, Field(ge=0)]
ShortLine = Annotated[Line, Field(min_length=1, max_length=300)]


class CanaryAudit(Document):
    """One-run audit with one kind of canary.

    Attributes:
        kind: ``gradient``: the auditor sees every noised step, and a canary's clipped gradient is
            one coordinate of its own. ``text``: the auditor sees the final adapter, and a canary is
            a synthetic text with a random label.
        canaries: How many; each took part by a fair coin.
        guesses: In or out was guessed for so many, the most suspicious; the auditor abstained on
            the rest.
        correct: Right guesses.
        lower_bound: Epsilon is at least this, at the campaign's delta, with the stated confidence.
        ceiling: The most that the audit could have proven, had all guesses been right.
    """

    kind: Literal["gradient", "text"]
    canaries: Count
    guesses: Count
    correct: Count
    lower_bound: Bound
    ceiling: Bound

    @model_validator(mode="after")
    def _guesses_fit(self) -> Self:
        if not self.correct <= self.guesses <= self.canaries:
            msg = "right guesses are among the guesses, and guesses among the canaries"
            raise ValueError(msg)
        return self


class Membership(Document):
    """Membership inference on the final adapter by the loss of a row.

    Attributes:
        auc: Chance that a row that was trained on has a lower loss than one that was not; 0.5
            means that nothing can be told.
        low: Lower end of its interval at the audit's confidence.
        high: Upper end.
        members: Rows that were trained on.
        others: Rows that were not.
    """

    auc: Share
    low: Share
    high: Share
    members: Count
    others: Count


class WhiteBoxCheck(Document):
    """One fact about the training code, measured from inside.

    Attributes:
        check: What was checked, such as ``noise_scale``.
        measured: What was found, for people.
        expected: What had to be found, for people.
        passed: Whether it was; a false alarm comes with probability 1e-6 or less.
    """

    check: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    measured: ShortLine
    expected: ShortLine
    passed: bool


class AuditReport(Document):
    """An audit of one site's part of a campaign.

    Attributes:
        campaign_id: The campaign whose numbers were run.
        campaign_digest: Its digest, or None if it was not locked.
        site: Whose public divisor was used.
        rows: Where the rows came from; a report on ``private`` rows stays at its site.
        source: Name of the rows, for people.
        claimed_epsilon: Upper bound of the accountant for all rounds, at ``delta``.
        delta: The campaign's delta.
        rounds: Rounds that were run.
        steps: Noised steps that were run.
        confidence: Of every bound and interval.
        gradient: Audit with gradient canaries; its bound is the audit's.
        text: Audit with text canaries, or None if there were none.
        membership: None where there were too few rows.
        checks: White-box checks of the same training code.
        label: Why this run is no audit of the product, such as a seed; None if it is one.
        code_version: Version of fedloom.
        made: When, UTC.
    """

    campaign_id: Name
    campaign_digest: Sha256 | None = None
    site: Name
    rows: Literal["public", "synthetic", "private"]
    source: ShortLine
    claimed_epsilon: Bound
    delta: Annotated[float, Field(gt=0, lt=1)]
    rounds: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    gradient: CanaryAudit
    text: CanaryAudit | None = None
    membership: Membership | None = None
    checks: Annotated[tuple[WhiteBoxCheck, ...], Field(max_length=64)] = ()
    label: ShortLine | None = None
    code_version: ShortLine
    made: datetime

    @property
    def lower_bound(self) -> float:
        """The audit lower bound; never to be shown as epsilon."""
        return self.gradient.lower_bound

    @property
    def verdict(self) -> Literal["refuted", "not refuted", "cannot refute"]:
        """What the audit says about the claim."""
        if self.gradient.lower_bound > self.claimed_epsilon:
            return "refuted"
        if self.gradient.ceiling < self.claimed_epsilon:
            return "cannot refute"
        return "not refuted"

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Names of the white-box checks that failed."""
        return tuple(check.check for check in self.checks if not check.passed)
