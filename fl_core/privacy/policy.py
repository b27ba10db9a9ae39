"""The site's own limits, and its verdict on every charge.

Whoever chooses delta or the unit passes any cap on epsilon, so the site states all of them itself
and evaluates its whole ledger at its own numbers (SOUNDNESS, rule 10).

Which accountant decides follows SOUNDNESS, rule 15. PLD is valid for one series of equal steps
approved beforehand, from which campaigns may draw adaptively and stop early. Anything else is
decided by RDP over all events at one order fixed beforehand. Where a series was approved and other
events are charged as well, an adversary may choose between the two ways in view of results; the
deltas of the two then add up (the outcomes split into those that stayed in the series and those
that left it), so RDP decides at what the series leaves of delta.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import Delta, Positive, RecordDp
from fl_core.campaign.specs import Count, Name, Sha256
from fl_core.errors import BudgetExhausted, PolicyRefused
from fl_core.privacy.accounting import (
    RECORD_GRID,
    Accountant,
    delta_of,
    epsilon,
    rdp_epsilon_at_order,
)
from fl_core.privacy.events import dpsgd_event, merged
from fl_core.updates.records import EventRecord, NonPrivateEvent

ANY = "*"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Allowed = Annotated[tuple[Sha256 | Literal["*"], ...], BeforeValidator(_listed)]


class Series(Document):
    """Equal steps that campaigns may draw from, approved before the first of them.

    Attributes:
        noise_multiplier: Noise stddev / clip_norm of every step.
        sampling_rate: Poisson probability of every step.
        max_steps: Steps of all campaigns together.
    """

    noise_multiplier: Positive
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    max_steps: Count

    def event(self, steps: int) -> EventRecord:
        """Return the event of ``steps`` steps."""
        return dpsgd_event(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=steps
        )


class Terms(Document):
    """What must not change once a ledger is charged: the RDP order and the series."""

    rdp_order: Annotated[float, Field(gt=1)]
    series: Series | None = None


class SitePolicy(Document):
    """What a site allows on one dataset; written by the site only.

    Attributes:
        dataset: Opaque id of the protected data; all campaigns on it share one ledger.
        unit: Unit of protection; ``row``.
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
    unit: str = "row"
    max_rows_per_unit: Count = 1
    adjacency: Literal["add_remove"] = "add_remove"
    epsilon: Positive
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


@dataclass(frozen=True, slots=True)
class Spend:
    """What a ledger amounts to under a policy.

    Attributes:
        epsilon: At the policy's delta; inf after a release without guarantee.
        accountant: ``pld`` within the series, else ``rdp``.
        series_steps_left: Steps that the series still holds; None outside a series.
        terms: The terms it was computed under; a ledger fixes them at its first charge.
    """

    epsilon: float
    accountant: Accountant
    series_steps_left: int | None
    terms: Terms


def spend(policy: SitePolicy, events: Sequence[EventRecord], *, grid: float = RECORD_GRID) -> Spend:
    """Return what all events of a ledger amount to at the policy's delta and unit.

    Protects one unit of this dataset against everybody who sees what left the site.
    """
    left = _series_steps_left(policy, events)
    if left is not None:
        spent = epsilon(events, delta=policy.delta, accountant="pld", grid=grid)
        return Spend(spent, "pld", left, policy.terms)
    return Spend(_filtered_epsilon(policy, events), "rdp", None, policy.terms)


def _series_steps_left(policy: SitePolicy, events: Sequence[EventRecord]) -> int | None:
    if policy.series is None:
        return None
    steps = merged(events)
    if not steps:
        return policy.series.max_steps
    ((own, _),) = merged([policy.series.event(1)])
    base, count = steps[0]
    is_series = len(steps) == 1 and base == own and count <= policy.series.max_steps
    return policy.series.max_steps - count if is_series else None


def _filtered_epsilon(policy: SitePolicy, events: Sequence[EventRecord]) -> float:
    delta = policy.delta
    if policy.series is not None:
        whole = policy.series.event(policy.series.max_steps)
        delta -= delta_of([whole], epsilon=policy.epsilon)
        if delta <= 0:
            return math.inf
    return rdp_epsilon_at_order(events, delta=delta, order=policy.terms.rdp_order)


def verdict(policy: SitePolicy, events: Sequence[EventRecord], new: EventRecord) -> Spend:
    """Decide on one more charge.

    Args:
        policy: The site's limits.
        events: All events of the ledger so far.
        new: What would be charged.

    Returns:
        The spend after the charge.

    Raises:
        BudgetExhausted: Epsilon would pass the policy's.
        PolicyRefused: ``new`` has no guarantee and the policy does not allow that.
    """
    if isinstance(new, NonPrivateEvent):
        _require_allowed_without_guarantee(policy)
        return spend(policy, [*events, new])
    after = spend(policy, [*events, new])
    if after.epsilon > policy.epsilon:
        raise BudgetExhausted(
            f"dataset {policy.dataset!r}: this round would bring epsilon to {after.epsilon:.2f} "
            f"by {after.accountant}, budget is {policy.epsilon:.2f} at delta {policy.delta:g}; "
            f"{spend(policy, events).epsilon:.2f} is spent, {len(events)} rounds are charged",
            hint=_remedy(policy, after),
        )
    return after


def _remedy(policy: SitePolicy, after: Spend) -> str:
    if math.isfinite(after.epsilon):
        return "a round with more noise or fewer steps may still fit"
    if policy.series is not None:
        return "the approved series may use all of delta, or a release had no guarantee"
    return "a release without guarantee was charged on this dataset; nothing is left to protect"


def _require_allowed_without_guarantee(policy: SitePolicy) -> None:
    if not policy.without_guarantee:
        raise PolicyRefused(
            "policy field 'without_guarantee' is false and the campaign has privacy.none; "
            "set it to true only for data that needs no protection"
        )


def require_allowed(policy: SitePolicy, campaign: Campaign) -> None:
    """Check a locked campaign against everything the policy states but the budget.

    Raises:
        PolicyRefused: With the policy's field that stands against it.
    """
    if campaign.digest not in policy.campaigns:
        raise PolicyRefused(
            f"policy field 'campaigns' does not hold digest {campaign.digest[:16]}... of campaign "
            f"{campaign.id!r}; read it, then run `fedloom site approve`"
        )
    contents = {
        "base_models": (campaign.base_model, policy.base_models),
        "suites": (campaign.gate, policy.suites),
    }
    for field, (content, allowed) in contents.items():
        if ANY not in allowed and content.sha256 not in allowed:
            raise PolicyRefused(
                f"policy field {field!r} does not hold {content.name!r} with hash "
                f"{str(content.sha256)[:16]}...; add the hash if the site agrees"
            )
    if campaign.privacy.client is not None:
        raise PolicyRefused("policy knows records only and the campaign has privacy.client")
    if campaign.privacy.record is None:
        _require_allowed_without_guarantee(policy)
    else:
        _require_as_strong(policy, campaign.privacy.record)


def _require_as_strong(policy: SitePolicy, record: RecordDp) -> None:
    if record.delta > policy.delta:
        raise PolicyRefused(
            f"policy field 'delta' is {policy.delta:g} and the campaign states {record.delta:g}; "
            "a larger delta makes any epsilon cheap, so use one that is no larger"
        )
    stated = {
        "unit": (policy.unit, record.unit),
        "max_rows_per_unit": (policy.max_rows_per_unit, record.max_rows_per_unit),
        "adjacency": (policy.adjacency, record.adjacency),
    }
    for field, (own, asked) in stated.items():
        if own != asked:
            raise PolicyRefused(
                f"policy field {field!r} is {own!r} and the campaign states {asked!r}; "
                "the ledger counts the policy's unit only"
            )
