"""What a site allows, as documents: the policy, its series, its terms, its approvals.

Whoever chooses delta or the unit passes any cap on epsilon, so the site states all of them itself
and evaluates its whole ledger at its own numbers (SOUNDNESS, rule 10).
"""

import math
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.guarantees import ROW, Delta, Unit
from fl_core.campaign.specs import Count, Name, Sha256
from fl_core.updates.records import LARGEST_EPSILON, Series, Terms

ANY = "*"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Allowed = Annotated[tuple[Sha256 | Literal["*"], ...], BeforeValidator(_listed)]


class SitePolicy(Document):
    """What a site allows on one dataset; written by the site only.

    Attributes:
        dataset: Opaque id of the protected data; all campaigns on it share one ledger.
        unit: Unit of protection: ``row``, or a column that names a person.
        max_rows_per_unit: Rows of one unit that may take part.
        adjacency: Neighbouring relation; add or remove one unit.
        epsilon: Limit over all campaigns.
        delta: At which epsilon is evaluated; a campaign with a larger one is refused.
        series: Steps decided by PLD, or None: RDP decides everything.
        rdp_order: Order at which RDP decides; None takes ``default_rdp_order``.
        base_models: Content hashes of base models that may be trained, or ``*``.
        suites: Content hashes of suites that may judge the rows, or ``*``.
        campaigns: Digests of approved campaigns.
        without_guarantee: Whether campaigns with NoPrivacy are allowed. One round of them makes
            epsilon infinite, so that every later RecordDp campaign on this dataset is refused.
    """

    dataset: Name
    unit: Unit = ROW
    max_rows_per_unit: Count = 1
    adjacency: Literal["add_remove"] = "add_remove"
    epsilon: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)]
    delta: Delta
    series: Series | None = None
    rdp_order: Annotated[float, Field(gt=1, le=1024)] | None = None
    base_models: Allowed
    suites: Allowed
    campaigns: tuple[Sha256, ...] = ()
    without_guarantee: bool = False

    @model_validator(mode="after")
    def _any_stands_alone(self) -> Self:
        for name in ("base_models", "suites"):
            allowed = getattr(self, name)
            if ANY in allowed and len(allowed) > 1:
                msg = f'{name} is either "*" or a list of hashes'
                raise ValueError(msg)
        return self

    @property
    def terms(self) -> Terms:
        """What a first charge fixes."""
        order = self.rdp_order or default_rdp_order(self.epsilon, self.delta)
        return Terms(rdp_order=order, series=self.series)


def default_rdp_order(epsilon: float, delta: float) -> float:
    """Return an order that serves DP-SGD well at this budget, rounded to tenths.

    For Gaussian releases without sampling the best order is ``1 + x`` with ``x = sqrt(L) /
    (sqrt(L + epsilon) - sqrt(L))``, ``L = ln(1 / delta)`` (minimise ``a r + L / (a - 1)`` over a
    at the r that ends at epsilon). Sampling lowers it; 0.65 x is within a few percent of the best
    order's epsilon for epsilon 1 to 11, rates .01 to .1. Any order is sound, a poor one wasteful.
    """
    root = math.sqrt(math.log(1 / delta))
    best = root / (math.sqrt(root * root + epsilon) - root)
    return round(1 + max(0.65 * best, 0.1), 1)


class Approval(Document):
    """The site's consent to one frozen campaign.

    Attributes:
        campaign_digest: Digest of the campaign, which covers every number in it.
        campaign: Its id, for people.
        approved: When, UTC.
    """

    campaign_digest: Sha256
    campaign: Name
    approved: AwareDatetime
