"""What it costs to run a campaign several times and keep the best run.

Choosing by looking at results is a release of its own. If only the best of a random number of runs
ever leaves, the price is far below that of all runs together (Papernot and Steinke 2022, theorem
6, Poisson number of runs); a fixed number of runs composes in full.
"""

from fl_core.campaign.campaign import Campaign
from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import epsilon, tuning_epsilon
from fl_core.privacy.plan_documents import TuningCost
from fl_core.privacy.round_events import round_costs
from fl_core.updates.records import SelfComposedEvent

_MOST_RUNS = 1e6


def tuning_cost(campaign: Campaign, *, mean_runs: float) -> TuningCost:
    """Return the cost of keeping the best of a Poisson number of runs of a whole campaign.

    For one unit of a site that takes part in every round; by RDP, which is how the bound is proven.

    Args:
        campaign: With its noise stated.
        mean_runs: Mean number of runs, from 1.

    Raises:
        PrivacyError: A mean outside 1 to 1e6, or a campaign without a guarantee.
    """
    if not 1 <= mean_runs <= _MOST_RUNS:
        raise PrivacyError(f"mean number of runs is {mean_runs}, it must lie between 1 and 1e6")
    costs = round_costs(campaign)
    if not costs:
        raise PrivacyError(
            f"campaign {campaign.id!r} has no guarantee, so that choosing a run costs nothing"
        )
    cost = costs[0]
    run = SelfComposedEvent(event=cost.event, count=campaign.max_rounds)
    everything = SelfComposedEvent(event=run, count=max(1, round(mean_runs)))
    return TuningCost(
        mean_runs=mean_runs,
        delta=cost.delta,
        one_run=epsilon([run], delta=cost.delta, accountant="rdp"),
        best_of_random=tuning_epsilon([run], delta=cost.delta, expected_trials=mean_runs),
        all_runs=epsilon([everything], delta=cost.delta, accountant="rdp"),
    )
