"""A plan as it would have been made before a campaign's first round.

The first statements of a campaign come with its first updates, when one round is charged already.
Taken off again, they say what each site had spent before and what its limit is, so that the plan
that is kept beside the campaign covers all of its rounds.
"""

from collections.abc import Mapping

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE
from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import LIVE_GRID
from fl_core.privacy.budget import spend
from fl_core.privacy.events import merged
from fl_core.privacy.plan_documents import CampaignPlan
from fl_core.privacy.planning import Stated, plan_campaign
from fl_core.privacy.round_events import round_costs
from fl_core.privacy.stated_budget import require_follows, stated_policy
from fl_core.updates.records import BudgetStatement, EventRecord, SelfComposedEvent, Spending


def plan_from_first_round(
    campaign: Campaign,
    budgets: Mapping[str, BudgetStatement],
    *,
    federation: BudgetStatement | None = None,
) -> CampaignPlan:
    """Return the plan of all rounds, from what was stated when the first one was charged.

    Args:
        campaign: With its noise stated.
        budgets: Statements beside the updates of round 1, signatures checked.
        federation: The coordinator's own at that round, under central ClientDp.
    """
    events: dict[str, EventRecord] = {str(cost.level): cost.event for cost in round_costs(campaign)}
    return plan_campaign(
        campaign,
        stated={site: _before(budget, events) for site, budget in budgets.items()},
        rounds=range(1, campaign.max_rounds + 1),
        federation=None
        if federation is None
        else _without(federation, events["client"], dataset=federation.dataset, unit=SITE),
    )


def _before(budget: BudgetStatement, events: Mapping[str, EventRecord]) -> Stated:
    try:
        require_follows(budget)
        changed: Spending = budget
        if "record" in events:
            changed = _without(budget, events["record"], dataset=budget.dataset, unit=budget.unit)
        client = budget.client
        if client is not None and "client" in events:
            client = _without(client, events["client"], dataset=budget.dataset, unit=SITE)
    except PrivacyError as error:
        return Stated(complaint=f"{error}")
    fields = changed.model_dump(include=set(Spending.model_fields))
    return Stated(BudgetStatement.model_validate(budget.model_dump() | fields | {"client": client}))


def _without(spending: Spending, event: EventRecord, *, dataset: str, unit: str) -> Spending:
    counts = dict(merged(spending.events))
    for base, count in merged([event]):
        counts[base] = counts.get(base, 0) - count
        if counts[base] < 0:
            raise PrivacyError("states fewer charges than the round that it was written for")
    left = tuple(
        SelfComposedEvent(event=base, count=count) for base, count in counts.items() if count
    )
    spent = spend(stated_policy(spending, dataset=dataset, unit=unit), left, grid=LIVE_GRID)
    return spending.model_copy(
        update={"events": left, "epsilon": spent.epsilon, "accountant": spent.accountant}
    )
