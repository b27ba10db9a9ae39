"""What a campaign will cost every site that takes part, before it runs or while it does.

Made from what the sites state about their budgets and from the public numbers of the campaign, so
that no site is asked and no row is touched. Every site is judged as it would judge itself: all
events it has stated, its own limit and delta, the accountant that its terms name (SOUNDNESS, rule
15). A site that states nothing is shown with the campaign alone. Figures use the coarse grid of a
live display: never below the recorded ones, above them by a fraction of a percent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE
from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import LIVE_GRID, epsilon
from fl_core.privacy.budget import Spend, spend
from fl_core.privacy.federation import DATASET, NAME
from fl_core.privacy.forecast import MAX_ROUNDS, rounds_left
from fl_core.privacy.plan_documents import BudgetPlan, CampaignPlan, PlanStatus, RoundEpsilon
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.privacy.round_events import RoundCost, round_costs, with_multiplier
from fl_core.privacy.stated_budget import both_shown, require_follows, stated_policy
from fl_core.updates.records import (
    LARGEST_EPSILON,
    BudgetStatement,
    EventRecord,
    SelfComposedEvent,
    Spending,
)

# Enough points for a table and a curve; more rounds are drawn at even distances. A composition
# takes tens of milliseconds, and sites with ledgers of their own share none.
_MOST_POINTS, _POINTS_TOGETHER, _FEWEST_POINTS = 24, 120, 8
_LARGEST_FACTOR = 2.0**12
_HALVINGS = 24


@dataclass(frozen=True, slots=True)
class Stated:
    """What the store holds of one site's budget.

    Attributes:
        statement: The latest one whose signature holds; None if there is none.
        complaint: Why there is none, or why it is not believed; empty otherwise.
    """

    statement: BudgetStatement | None = None
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class _Account:
    """One budget with what a round of the campaign costs on it."""

    site: str
    cost: RoundCost
    spending: Spending | None
    policy: SitePolicy
    complaint: str = ""

    @property
    def events(self) -> tuple[EventRecord, ...]:
        return () if self.spending is None else self.spending.events

    def after(self, rounds: int, cost: RoundCost | None = None) -> Spend:
        """What the budget amounts to after so many more rounds."""
        event = (cost or self.cost).event
        events = [*self.events, *_times(event, rounds)]
        if self.spending is None and self.cost.unit != SITE:
            # No terms are known, so the campaign is shown by itself, by PLD.
            alone = epsilon(events, delta=self.policy.delta, grid=LIVE_GRID)
            return Spend(alone, "pld", None, self.policy.terms)
        return spend(self.policy, events, grid=LIVE_GRID)


def plan_campaign(
    campaign: Campaign,
    *,
    stated: Mapping[str, Stated],
    rounds: range,
    federation: Spending | None = None,
    on_budget: Callable[[str], None] = lambda _site: None,
) -> CampaignPlan:
    """Return what further rounds cost on every budget that they are charged to.

    Args:
        campaign: With its noise stated; it need not be locked.
        stated: What is known of each site; a site that is left out states nothing.
        rounds: Their numbers, the next one first.
        federation: Spend on the federation's ledger, under central ClientDp; None is unknown.
        on_budget: Told of every budget before it is worked out, for a progress display.

    Raises:
        PrivacyError: No rounds, or numbers that no campaign can have.
        IncompatibleParts: The noise is still open.
    """
    if not rounds or rounds.step != 1 or not 1 <= rounds[0] <= rounds[-1] <= MAX_ROUNDS:
        raise PrivacyError(f"rounds {rounds} cannot be planned; numbers from 1 to 9999 can")
    accounts = _accounts(campaign, stated, federation)
    numbers = _drawn(len(rounds), together=len(accounts))
    budgets = []
    for account in accounts:
        on_budget(account.site)
        points = tuple(_point(account, number, rounds[0]) for number in numbers)
        budgets.append(_budget_plan(account, campaign, points=points))
    judged = [b for b in budgets if b.rounds_left is not None]
    ends_first = min(judged, key=lambda b: (b.rounds_left, b.site), default=None)
    finite = [b for b in budgets if b.epsilon_at_end is not None]
    # Where the campaign promises something, not where a round only costs something.
    worst = max(
        finite,
        key=lambda b: (b.limit is not None, b.level == "record", b.epsilon_at_end),
        default=None,
    )
    return CampaignPlan(
        campaign=campaign.id,
        max_rounds=campaign.max_rounds,
        first_round=rounds[0],
        rounds=len(rounds),
        budgets=tuple(budgets),
        ends_first=None if ends_first is None else ends_first.site,
        ends_first_level=None if ends_first is None else ends_first.level,
        worst_site=None if worst is None else worst.site,
        worst_epsilon=None if worst is None else worst.epsilon_at_end,
        reason="" if campaign.privacy.none is None else campaign.privacy.none.reason,
    )


def _accounts(
    campaign: Campaign, stated: Mapping[str, Stated], federation: Spending | None
) -> list[_Account]:
    accounts = []
    for cost in round_costs(campaign):
        if cost.charged_by == "coordinator":
            accounts.append(_federation_account(cost, federation))
            continue
        accounts += [
            _site_account(cost, site, stated.get(site, Stated())) for site in sorted(campaign.sites)
        ]
    return accounts


def _site_account(cost: RoundCost, site: str, known: Stated) -> _Account:
    alone = _Account(site, cost, None, _fresh_policy(cost), known.complaint)
    statement = known.statement
    if statement is None:
        return alone
    try:
        require_follows(statement)
    except PrivacyError as error:
        return replace(alone, complaint=f"{error}")
    if cost.level == "client":
        if statement.client is None:
            return alone
        policy = stated_policy(statement.client, dataset=statement.dataset, unit=SITE)
        return _Account(site, cost, statement.client, policy)
    policy = stated_policy(statement, dataset=statement.dataset, unit=statement.unit)
    if cost.unit is not None and statement.unit != cost.unit:
        return replace(
            alone,
            complaint=f"its ledger counts {statement.unit!r}, the campaign {cost.unit!r}",
        )
    return _Account(site, cost, statement, policy)


def _federation_account(cost: RoundCost, federation: Spending | None) -> _Account:
    if federation is None:
        return _Account(NAME, cost, None, _fresh_policy(cost))
    policy = stated_policy(federation, dataset=DATASET, unit=SITE)
    return _Account(NAME, cost, federation, policy)


def _fresh_policy(cost: RoundCost) -> SitePolicy:
    return SitePolicy(
        dataset="unknown",
        unit=cost.unit or "row",
        epsilon=cost.epsilon_limit or LARGEST_EPSILON,
        delta=cost.delta,
        base_models=("*",),
        suites=("*",),
    )


def _drawn(rounds: int, *, together: int) -> list[int]:
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _POINTS_TOGETHER // max(together, 1)))
    step = math.ceil(rounds / most)
    return sorted({*range(step, rounds + 1, step), 1, rounds})


def _point(account: _Account, number: int, first_round: int) -> RoundEpsilon:
    after = _finite(account.after(number).epsilon)
    return RoundEpsilon(round=first_round + number - 1, epsilon=after)


def _budget_plan(
    account: _Account, campaign: Campaign, *, points: tuple[RoundEpsilon, ...]
) -> BudgetPlan:
    first_round, rounds = points[0].round, points[-1].round - points[0].round + 1
    cost, spending, policy = account.cost, account.spending, account.policy
    all_events = [*account.events, *_times(cost.event, rounds)]
    left = second = None
    if spending is not None:
        left = rounds_left(policy, account.events, cost.event)
        # Equal rounds: what is left after some of them is what is left now without them.
        second = min(max(left - rounds, 0), campaign.max_rounds)
    pld, rdp = both_shown(all_events, delta=policy.delta, grid=LIVE_GRID)
    return BudgetPlan(
        site=account.site,
        level=cost.level,
        unit=cost.unit or "row",
        status=_status(account),
        complaint=account.complaint,
        spent=None if spending is None else spending.epsilon,
        limit=cost.epsilon_limit if spending is None else policy.epsilon,
        delta=policy.delta,
        accountant=account.after(rounds).accountant,
        after=points,
        rounds_left=left,
        refused_in=first_round + left if left is not None and left < rounds else None,
        noise=cost.multiplier,
        noise_needed=(
            _noise_needed(account, campaign, rounds=rounds) if _has_limit(account) else None
        ),
        second_campaign_rounds=second,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
    )


def _has_limit(account: _Account) -> bool:
    return account.spending is not None or account.cost.epsilon_limit is not None


def _status(account: _Account) -> PlanStatus:
    if account.spending is not None:
        return "stated"
    return "does not hold" if account.complaint else "not stated"


def _noise_needed(account: _Account, campaign: Campaign, *, rounds: int) -> float | None:
    """Return the stated noise if it fits, else the least larger one that does; None if none."""
    multiplier = account.cost.multiplier

    def fits(factor: float) -> bool:
        noised = with_multiplier(campaign, account.cost, multiplier * factor)
        return account.after(rounds, noised).epsilon <= account.policy.epsilon

    if fits(1.0):
        return multiplier
    low, high = 1.0, 2.0
    while not fits(high):
        low, high = high, 2 * high
        if high > _LARGEST_FACTOR:
            return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
        if (high - low) * multiplier < 1e-4:  # noqa: PLR2004  fewer digits than are shown
            break
    return math.ceil(multiplier * high * 1e4) / 1e4


def _times(event: EventRecord, rounds: int) -> Sequence[EventRecord]:
    return [SelfComposedEvent(event=event, count=rounds)] if rounds else []


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
