"""What a campaign promises about privacy: a closed union.

Nobody plugs in a new promise; the mechanisms that keep one are an open registry in ``privacy``.
There is no default: a campaign says RecordDp, ClientDp or NoPrivacy in so many words.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Line, Positive

Delta = Annotated[float, Field(gt=0, lt=1)]
# A column's name goes into statements and ledgers, where people read it.
Unit = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ROW = "row"
# The unit of ClientDp: everything that one site holds.
SITE = "site"
# Which promise a budget is of: to one unit of a site's rows, or to one site's whole data.
Level = Literal["record", "client"]


class GroupBounds(Document):
    """L2 bounds of one unit's gradient, one for the LoRA pairs and one for the head.

    At the start lora_B is zero, so the head's gradient is many times the adapter's, and one bound
    for both starves the adapter. The sensitivity is the root of the sum of squares.
    """

    adapter: Positive
    head: Positive


class AdaptiveClip(Document):
    """A clip norm that follows a quantile of the units' gradient norms, at a charged price.

    Attributes:
        quantile: Share of units whose gradient is to stay unclipped.
        learning_rate: Of the geometric update of the clip norm.
        count_stddev: Noise stddev on the sum of ``b - 1/2`` over the batch, b saying whether a
            unit's norm is under the clip norm; its sensitivity is 1/2.

    Source: Andrew et al. 2021, Algorithm 1 and section 3, applied to the units of a step.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.2
    count_stddev: Positive


class RecordDp(Document):
    """(epsilon, delta)-DP for one unit of one site, under add/remove of that unit.

    Against whom: everybody who sees what leaves the site, the coordinator included. Disjoint sites
    compose in parallel (McSherry 2009), so the campaign's epsilon is the worst site's.

    Attributes:
        epsilon: Limit for the whole campaign, all rounds together.
        delta: Probability mass outside epsilon; fixed before training.
        unit: ``row``, or the column that names whom to protect, such as ``patient_id``: all rows of
            one value are bounded, drawn, clipped and noised together (SOUNDNESS, rule 3).
        max_rows_per_unit: Rows of one unit that may take part; 1 for ``row``.
        adjacency: Neighbouring relation; add or remove one unit.
        clip_norm: L2 bound of one unit's gradient over all trained tensors together, or one bound
            for the LoRA pairs and one for the head.
        adaptive_clip: Lets ``clip_norm`` follow the gradients; None keeps it fixed.
        sampling_rate: Poisson probability of a unit per local step; public, the same at all sites.
        noise_multiplier: Noise stddev / clip_norm of the summed gradients. None: calibrated when
            the campaign is locked, to ``max_rounds x local_steps`` steps.
        mechanism: Name in the registry of mechanisms.
    """

    epsilon: Positive
    delta: Delta
    unit: Unit = ROW
    max_rows_per_unit: Annotated[int, Field(ge=1, le=1024)] = 1
    adjacency: Literal["add_remove"] = "add_remove"
    clip_norm: Positive | GroupBounds
    adaptive_clip: AdaptiveClip | None = None
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Positive | None = None
    mechanism: Annotated[str, Field(max_length=100)] = "dpsgd"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.unit == ROW and self.max_rows_per_unit != 1:
            msg = 'unit = "row" has one row each; name a column as unit, or drop max_rows_per_unit'
            raise ValueError(msg)
        if self.unit == SITE:
            msg = 'unit = "site" is what [privacy.client] protects; give the column another name'
            raise ValueError(msg)
        if self.adaptive_clip is not None and isinstance(self.clip_norm, GroupBounds):
            msg = "adaptive_clip moves one clip_norm; give a single number, or keep both bounds"
            raise ValueError(msg)
        return self

    @property
    def sensitivity(self) -> float:
        """L2 distance by which one unit moves a step's gradient sum."""
        if isinstance(self.clip_norm, GroupBounds):
            return math.hypot(self.clip_norm.adapter, self.clip_norm.head)
        return self.clip_norm


class ClientDp(Document):
    """(epsilon, delta)-DP for one site's whole data, under zero-out of that site's update.

    Attributes:
        epsilon: Limit for the whole campaign.
        delta: Probability mass outside epsilon.
        clip_norm: L2 bound of one site's update.
        noise_multiplier: Noise stddev / sensitivity; None: calibrated when the campaign is locked.
        mechanism: Who adds the noise. ``gaussian``: the coordinator, after aggregation, which
            promises nothing against itself. ``local_gaussian``: every site, before its update
            leaves, against everybody.
        adjacency: Neighbouring relation; one site's update replaced by zero.
    """

    epsilon: Positive
    delta: Delta
    clip_norm: Positive
    noise_multiplier: Positive | None = None
    mechanism: Annotated[str, Field(max_length=100)]
    adjacency: Literal["zero_out"] = "zero_out"


class NoPrivacy(Document):
    """No guarantee, with the reason that everybody will see.

    Attributes:
        reason: Why none is needed, at least 20 characters; shown in MLflow and in every report.
    """

    reason: Annotated[Line, Field(min_length=20, max_length=2000)]


class Privacy(Document):
    """The guarantees of a campaign: ``record`` and ``client``, either or both, or ``none``."""

    record: RecordDp | None = None
    client: ClientDp | None = None
    none: NoPrivacy | None = None

    @model_validator(mode="after")
    def _one_statement(self) -> Self:
        stated = self.record is not None or self.client is not None
        if stated == (self.none is not None):
            msg = "state [privacy.record] and/or [privacy.client], or [privacy.none] with a reason"
            raise ValueError(msg)
        return self
