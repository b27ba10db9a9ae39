"""What a campaign promises about privacy: a closed union.

Nobody plugs in a new promise; the mechanisms that keep one are an open registry in ``privacy``.
There is no default: a campaign says RecordDp, ClientDp or NoPrivacy in so many words.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Line

Positive = Annotated[float, Field(gt=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]


class RecordDp(Document):
    """(epsilon, delta)-DP for one unit of one site, under add/remove of that unit.

    Against whom: everybody who sees what leaves the site, the coordinator included. Disjoint sites
    compose in parallel (McSherry 2009), so the campaign's epsilon is the worst site's.

    Attributes:
        epsilon: Limit for the whole campaign, all rounds together.
        delta: Probability mass outside epsilon; fixed before training.
        unit: ``row``; a column that names a person is refused until fedloom can bound its rows.
        max_rows_per_unit: Rows of one unit that may take part; 1 for ``row``.
        adjacency: Neighbouring relation; add or remove one unit.
        clip_norm: L2 bound of one unit's gradient, over all trainable tensors together.
        sampling_rate: Poisson probability of a unit per local step; public, the same at all sites.
        noise_multiplier: Noise stddev / clip_norm of the summed gradients. None: calibrated when
            the campaign is locked, to ``max_rounds x local_steps`` steps.
        mechanism: Name in the registry of mechanisms.
    """

    epsilon: Positive
    delta: Delta
    unit: str = "row"
    max_rows_per_unit: Annotated[int, Field(ge=1)] = 1
    adjacency: Literal["add_remove"] = "add_remove"
    clip_norm: Positive
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Positive | None = None
    mechanism: str = "dpsgd"


class ClientDp(Document):
    """(epsilon, delta)-DP for one site's whole data, under zero-out of that site's update.

    Attributes:
        epsilon: Limit for the whole campaign.
        delta: Probability mass outside epsilon.
        clip_norm: L2 bound of one site's update.
        noise_multiplier: Noise stddev / sensitivity of the aggregate; None: calibrated.
        mechanism: Name in the registry of mechanisms.
        adjacency: Neighbouring relation; one site's update replaced by zero.
    """

    epsilon: Positive
    delta: Delta
    clip_norm: Positive
    noise_multiplier: Positive | None = None
    mechanism: str
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
