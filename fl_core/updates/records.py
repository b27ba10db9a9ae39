"""Documents that travel with an update: privacy events, the gate's report, the budget statement.

EventRecord is our own closed list. dp_accounting's ``from_named_tuple`` imports a module by a name
found in the data, which must never happen on a manifest from another machine. A kind or its fields
are never removed or redefined: old ledgers must stay readable.

Every field that a site fills is bounded. What it says is shown to people, added up and stored by
others, and a number beyond reason would stop them as surely as a malformed document.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Count, Name, Sha256

# The last that a store's key can name.
LAST_SEQUENCE = 10**9 - 1
SequenceNumber = Annotated[int, Field(ge=1, le=LAST_SEQUENCE)]
Accountant = Literal["pld", "rdp", "gdp"]
# More is no statement about privacy, and a policy with more is refused.
LARGEST_EPSILON = 1e6
RuleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
RuleNames = Annotated[tuple[RuleName, ...], Field(max_length=256)]


class GaussianEvent(Document):
    """Gaussian noise on a sum; ``noise_multiplier`` = stddev / L2 sensitivity."""

    kind: Literal["gaussian"] = "gaussian"
    noise_multiplier: Annotated[float, Field(ge=0)]


class PoissonEvent(Document):
    """``event`` on a batch in which every unit is drawn with ``sampling_rate``, independently."""

    kind: Literal["poisson"] = "poisson"
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    event: GaussianEvent


class WithoutReplacementEvent(Document):
    """``event`` on exactly ``sample_size`` of ``population`` units, drawn without replacement.

    Holds under replace-one only: the size of the population is public. ``event``'s sensitivity is
    that of a replaced unit, ``2 C`` for vectors clipped to C.
    """

    kind: Literal["without_replacement"] = "without_replacement"
    sample_size: Count
    population: Count
    event: GaussianEvent

    @model_validator(mode="after")
    def _sample_fits(self) -> Self:
        if self.sample_size > self.population:
            msg = f"sample_size is {self.sample_size}, of a population of {self.population} only"
            raise ValueError(msg)
        return self


class SelfComposedEvent(Document):
    """``event``, ``count`` times."""

    kind: Literal["self_composed"] = "self_composed"
    event: "EventRecord"
    count: Count


class ComposedEvent(Document):
    """All of ``events``, one after the other."""

    kind: Literal["composed"] = "composed"
    events: tuple["EventRecord", ...]


class NonPrivateEvent(Document):
    """A release without any guarantee: epsilon is infinite from here on."""

    kind: Literal["non_private"] = "non_private"


EventRecord = Annotated[
    GaussianEvent
    | PoissonEvent
    | WithoutReplacementEvent
    | SelfComposedEvent
    | ComposedEvent
    | NonPrivateEvent,
    Field(discriminator="kind"),
]
SelfComposedEvent.model_rebuild()
ComposedEvent.model_rebuild()


class Series(Document):
    """Equal steps that campaigns may draw from, approved before the first of them.

    Attributes:
        noise_multiplier: Noise stddev / clip_norm of every step.
        sampling_rate: Poisson probability of every step.
        max_steps: Steps of all campaigns together.
    """

    noise_multiplier: Annotated[float, Field(gt=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    max_steps: Count

    def event(self, steps: int) -> EventRecord:
        """Return the event of ``steps`` steps, at least one."""
        gaussian = GaussianEvent(noise_multiplier=self.noise_multiplier)
        step = PoissonEvent(sampling_rate=self.sampling_rate, event=gaussian)
        return SelfComposedEvent(event=step, count=steps)


class Terms(Document):
    """What must not change once a ledger is charged: the RDP order and the series."""

    rdp_order: Annotated[float, Field(gt=1)]
    series: Series | None = None


class GateReport(Document):
    """All that may leave a site about the quality of its rows.

    Attributes:
        suite_sha256: Content hash of the suite that judged.
        passed: Whether every set rule holds.
        failed: Names of the rules that broke, sorted; never a value, never a count.
    """

    suite_sha256: Sha256
    passed: bool
    failed: RuleNames = ()


class Charge(Document):
    """The event a site charged for one round, and where in its ledger.

    Attributes:
        event: What was charged.
        ledger_seq: Sequence number of the reserve, from 1.
    """

    event: EventRecord
    ledger_seq: SequenceNumber


class Spending(Document):
    """What a ledger amounts to and may still amount to, with all that is needed to check it.

    Attributes:
        epsilon: Spent over all campaigns on this dataset, at ``delta``.
        epsilon_limit: Limit of the site's policy.
        delta: The policy's delta.
        accountant: ``pld`` where one approved series decides, ``gdp`` where the unit is a whole
            site, else ``rdp`` (SOUNDNESS, rule 15).
        rounds_left: Further rounds of this campaign that the policy still allows.
        events: All that was charged, equal steps added up; epsilon follows from them.
        terms: Under which it was decided.
        ledger_seq: Highest entry that this covers.
        ledger_head_sha256: Hash of that entry.
    """

    epsilon: Annotated[float, Field(ge=0, le=LARGEST_EPSILON)]
    epsilon_limit: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: Accountant
    rounds_left: Annotated[int, Field(ge=0, le=9999)]
    events: Annotated[tuple[EventRecord, ...], Field(max_length=1000)] = ()
    terms: Terms | None = None
    ledger_seq: SequenceNumber
    ledger_head_sha256: Sha256


class BudgetStatement(Spending):
    """What a site says about its spent budget; signed, beside every manifest.

    Attributes:
        site: Who says it.
        campaign_digest: Campaign the statement was written for.
        round: Round the statement was written for.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
        client: The same for the site's whole data, where its policy limits that (``[client]``).
        signature: Ed25519 over the canonical JSON of the rest, hex; empty while unsigned.
    """

    site: Name
    campaign_digest: Sha256
    round: Count
    dataset: Name
    unit: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    client: Spending | None = None
    signature: str = ""


class ClassScores(Document):
    """Scores of one class on the holdout; each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class Evaluation(Document):
    """One release on the coordinator's public holdout.

    Attributes:
        adapter_sha256: Content hash of the adapter that was evaluated.
        holdout_sha256: Content hash of the holdout.
        examples: Rows of the holdout; public.
        loss: Mean loss per example (classification) or per answer token mean (causal LM); None
            where it is not finite, since training diverged or a site saw to it.
        accuracy: Share of right labels, or of right answer tokens for a causal LM.
        macro_f1: Unweighted mean of F1 over the classes; None for a causal LM.
        classes: Scores per label; empty for a causal LM.
    """

    adapter_sha256: Sha256
    holdout_sha256: Sha256
    examples: Count
    loss: float | None = None
    accuracy: float
    macro_f1: float | None = None
    classes: dict[str, ClassScores] = Field(default_factory=dict)
