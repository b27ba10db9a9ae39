"""The site's verdict on every charge: what a ledger amounts to, and whether more fits.

Which accountant decides follows SOUNDNESS, rule 15. Whole sites are never sampled, so where the
unit is the site every event is a plain Gaussian one and the exact filter of GDP decides. For rows
and persons PLD is valid for one series of equal steps approved beforehand, from which campaigns may
draw adaptively and stop early. Anything else is decided by RDP over all events at one order fixed
beforehand. Where a series was approved and other
events are charged as well, an adversary may choose between the two ways in view of results; the
deltas of the two then add up (the outcomes split into those that stayed in the series and those
that left it), so RDP decides at what the series leaves of delta.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fl_core.campaign.guarantees import SITE
from fl_core.errors import BudgetExhausted, PolicyRefused
from fl_core.privacy.accounting import (
    RECORD_GRID,
    Accountant,
    delta_of,
    epsilon,
    rdp_epsilon_at_order,
)
from fl_core.privacy.events import added_up, merged
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.updates.records import EventRecord, NonPrivateEvent, Terms


@dataclass(frozen=True, slots=True)
class Spend:
    """What a ledger amounts to under a policy.

    Attributes:
        epsilon: At the policy's delta; inf after a release without guarantee.
        accountant: ``gdp`` where the unit is a whole site, ``pld`` within the series, else ``rdp``.
        series_steps_left: Steps that the series still holds; None outside a series.
        terms: The terms it was computed under; a ledger fixes them at its first charge.
    """

    epsilon: float
    accountant: Accountant
    series_steps_left: int | None
    terms: Terms


def spend(policy: SitePolicy, events: Sequence[EventRecord], *, grid: float = RECORD_GRID) -> Spend:
    """Return what all events of a ledger amount to at the policy's delta and unit.

    Protects one unit of this dataset against everybody who sees what left the site. Where the unit
    is the site, an event that is not plain Gaussian makes epsilon infinite.

    Raises:
        PrivacyError: An event that no accountant takes under the policy's adjacency.
    """
    # A ledger holds one event per round, of few kinds; added up once, all below is flat in rounds.
    events = added_up(events)
    if policy.unit == SITE:
        spent = epsilon(events, delta=policy.delta, accountant="gdp")
        return Spend(spent, "gdp", None, policy.terms)
    left = series_steps_left(policy, events)
    if left is not None:
        spent = epsilon(events, delta=policy.delta, accountant="pld", grid=grid)
        return Spend(spent, "pld", left, policy.terms)
    return Spend(_filtered_epsilon(policy, events, grid), "rdp", None, policy.terms)


def series_steps_left(policy: SitePolicy, events: Sequence[EventRecord]) -> int | None:
    """Return how many steps the approved series still holds; None where it does not decide."""
    if policy.series is None or policy.unit == SITE:
        return None
    steps = merged(events)
    if not steps:
        return policy.series.max_steps
    ((own, _),) = merged([policy.series.event(1)])
    base, count = steps[0]
    is_series = len(steps) == 1 and base == own and count <= policy.series.max_steps
    return policy.series.max_steps - count if is_series else None


def _filtered_epsilon(policy: SitePolicy, events: Sequence[EventRecord], grid: float) -> float:
    delta = policy.delta
    if policy.series is not None:
        whole = policy.series.event(policy.series.max_steps)
        delta -= delta_of([whole], epsilon=policy.epsilon, grid=grid)
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
        require_allowed_without_guarantee(policy)
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
    if policy.unit == SITE:
        return "a whole site's ledger takes plain gaussian rounds with noise, and nothing else"
    if policy.series is not None:
        return "the approved series may use all of delta, or a release had no guarantee"
    return "a release without guarantee was charged on this dataset; nothing is left to protect"


def require_allowed_without_guarantee(policy: SitePolicy) -> None:
    """Refuse a release without guarantee unless the policy allows it.

    Raises:
        PolicyRefused: It does not.
    """
    if not policy.without_guarantee:
        raise PolicyRefused(
            "policy field 'without_guarantee' is false and the campaign has privacy.none; "
            "set it to true only for data that needs no protection"
        )
