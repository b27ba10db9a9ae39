"""What a site says about its budget, signed; and whether what it says follows from its own events.

A statement carries the events it was made from and the terms it was decided under, so that whoever
reads it can work epsilon out again. A figure that does not follow is no statement. What cannot be
checked is whether events were left out: witnesses hold the ledger's head for that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from fl_core.campaign.guarantees import SITE
from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import both_epsilons, pld_cost
from fl_core.privacy.budget import spend
from fl_core.privacy.events import merged
from fl_core.privacy.forecast import rounds_left
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.updates.records import BudgetStatement, EventRecord, SelfComposedEvent, Spending
from fl_core.updates.signing import SigningKey, sign

# A ledger of more kinds of steps states no list, and shows as one that cannot be checked.
_MOST_EVENTS = 1000
_MOST_SHOWN = 32
# A little above what the longest series takes that is checked.
_MOST_POINTS = 4e6
# What a few seconds can check; whoever states more could hold up everybody who reads it.
_MOST_STEPS, _MOST_KINDS_BY_ORDER = 10**6, 10**4
# Equal programs agree to the last digits; a lie that small changes nothing a person decides.
_CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget of a site: a ledger, the limits it is held to, and what a round charges on it."""

    ledger: Ledger
    policy: SitePolicy
    event: EventRecord


def budget_statement(  # noqa: PLR0913  who, for what, and one budget per level
    key: SigningKey,
    *,
    site: str,
    campaign_digest: str,
    round_number: int,
    record: Budget,
    client: Budget | None = None,
) -> BudgetStatement:
    """Return the site's signed statement about its budgets, after a round was charged.

    Speaks of all campaigns on the dataset, at the policies' own delta and unit.

    Args:
        key: The site's signing key.
        site: Who states it.
        campaign_digest: Campaign that the statement is written for.
        round_number: Its round.
        record: Budget of one unit of the site's rows.
        client: Budget of the site's whole data, under local ClientDp.

    Raises:
        PrivacyError: There is no finite epsilon to state: a release without guarantee was charged.
        LedgerCorrupt: A ledger does not hold.
    """
    statement = BudgetStatement(
        **spending_of(record).model_dump(),
        site=site,
        campaign_digest=campaign_digest,
        round=round_number,
        dataset=record.policy.dataset,
        unit=record.policy.unit,
        client=None if client is None else spending_of(client),
    )
    return sign(statement, key)


def spending_of(budget: Budget) -> Spending:
    """Return what a ledger amounts to, with the events and terms that it follows from.

    Raises:
        PrivacyError: There is no finite epsilon to state.
        LedgerCorrupt: The ledger does not hold.
    """
    policy, chain = budget.policy, budget.ledger.chain()
    events = chain.events()
    spent = spend(policy, events)
    if not math.isfinite(spent.epsilon):
        raise PrivacyError(
            f"dataset {policy.dataset!r} has no finite epsilon to state; "
            "a release without guarantee was charged, or its series leaves no delta to RDP"
        )
    added_up = added_up_events(events)
    return Spending(
        epsilon=spent.epsilon,
        epsilon_limit=policy.epsilon,
        delta=policy.delta,
        accountant=spent.accountant,
        rounds_left=rounds_left(policy, events, budget.event),
        events=added_up if len(added_up) <= _MOST_EVENTS else (),
        terms=spent.terms,
        ledger_seq=chain.entries[-1].seq,
        ledger_head_sha256=chain.head_sha256,
    )


def added_up_events(events: Sequence[EventRecord]) -> tuple[EventRecord, ...]:
    """Return the same charges with equal steps added up, in a fixed order."""
    return tuple(
        base if count == 1 else SelfComposedEvent(event=base, count=count)
        for base, count in merged(events)
    )


def stated_policy(spending: Spending, *, dataset: str, unit: str) -> SitePolicy:
    """Return the limits that a statement was decided under, as a policy that can decide again.

    Args:
        spending: A site's word.
        dataset: Whose data.
        unit: Unit that the ledger counts; ``site`` for a site's whole data.

    Raises:
        PrivacyError: It states no terms, or terms that no policy can have.
    """
    if spending.terms is None:
        raise PrivacyError("states no terms, so nothing can be worked out from its events")
    try:
        return SitePolicy(
            dataset=dataset,
            unit=unit,
            epsilon=spending.epsilon_limit,
            delta=spending.delta,
            series=spending.terms.series,
            rdp_order=spending.terms.rdp_order,
            base_models=("*",),
            suites=("*",),
        )
    except ValidationError as error:
        raise PrivacyError("states terms that no policy can have") from error


def both_shown(
    events: Sequence[EventRecord], *, delta: float, grid: float
) -> tuple[float | None, float | None]:
    """Return epsilon by PLD and by RDP at its best order, for display beside the one that decides.

    None is infinite, or not worked out: a ledger of very many kinds of events, or of steps with
    next to no noise, would take minutes, and whoever wrote them chooses.
    """
    try:
        if len(merged(events)) > _MOST_SHOWN or pld_cost(events, grid=grid) > _MOST_POINTS:
            return None, None
        both = both_epsilons(events, delta=delta, grid=grid)
    except (ArithmeticError, ValueError):
        # An accountant may not bear all numbers that another one bears.
        return None, None
    return _finite(both.pld), _finite(both.rdp)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def require_follows(statement: BudgetStatement) -> None:
    """Check that both epsilons of a statement follow from its own events and terms.

    Raises:
        PrivacyError: One does not; says which and by how much.
    """
    require_spending_follows(statement, dataset=statement.dataset, unit=statement.unit)
    if statement.client is not None:
        require_spending_follows(statement.client, dataset=statement.dataset, unit=SITE)


def require_spending_follows(spending: Spending, *, dataset: str, unit: str) -> None:
    """Check that one budget's epsilon and accountant follow from its own events and terms.

    Raises:
        PrivacyError: They do not, or are too much to check.
    """
    level = "whole-site " if unit == SITE else ""
    policy = stated_policy(spending, dataset=dataset, unit=unit)
    _require_checkable(spending, policy)
    try:
        spent = spend(policy, spending.events)
    except (ArithmeticError, ValueError) as error:
        # Another machine chose the numbers, and an accountant may not bear all of them.
        raise PrivacyError(f"states {level}events that no accountant takes") from error
    if not math.isclose(spent.epsilon, spending.epsilon, rel_tol=_CLOSE, abs_tol=_CLOSE):
        raise PrivacyError(
            f"states {level}epsilon {spending.epsilon:.6g}, its own events come to "
            f"{spent.epsilon:.6g}; the site must correct it"
        )
    if spent.accountant != spending.accountant:
        raise PrivacyError(
            f"says that {spending.accountant} decided on the {level}budget, its own terms say "
            f"{spent.accountant}; the site must correct it"
        )


def _require_checkable(spending: Spending, policy: SitePolicy) -> None:
    steps = merged(spending.events)
    series = policy.series
    longest = max(sum(count for _, count in steps), 0 if series is None else series.max_steps)
    if series is not None and longest > _MOST_STEPS:
        # Not how many: Python writes out no whole number of more than 4,300 digits.
        raise PrivacyError(f"states too many steps, at most {_MOST_STEPS} are checked")
    if len(steps) * policy.terms.rdp_order > _MOST_KINDS_BY_ORDER:
        raise PrivacyError(
            f"states {len(steps)} kinds of steps at order {policy.terms.rdp_order:g}, "
            "too many to check"
        )
