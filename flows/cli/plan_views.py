"""What people see of a plan: epsilon after each round, every budget, and the answers in words.

Sites whose figures are the same share a column, so that twenty sites without a statement fit.
"""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fl_core.privacy.plan_documents import BudgetPlan, CampaignPlan, TuningCost

_COLUMNS = 8
_ROWS = 24
_NONE = "-"
_LEVELS = {"record": "rows", "client": "all"}


def schedule_table(plan: CampaignPlan) -> Table:
    """Return epsilon after each planned round, one column for all budgets that agree."""
    groups = _alike(plan.budgets)[:_COLUMNS]
    title = f"{plan.campaign}: epsilon after each round"
    table = Table(
        title=title,
        min_width=len(title),
        caption="red: the site will refuse" if any(b.refused_in for b in plan.budgets) else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("after\nround", justify="right")
    for group in groups:
        table.add_column(_head(group), justify="right")
    points = groups[0][0].after
    step = -(-len(points) // _ROWS)
    chosen = sorted({*range(0, len(points), step), len(points) - 1})
    for index in chosen:
        cells = [_cell(group[0], index) for group in groups]
        table.add_row(str(points[index].round), *cells)
    return table


def budgets_table(plan: CampaignPlan) -> Table:
    """Return every budget that the planned rounds are charged to."""
    # Eighty columns hold no more: what is the same for all sites goes below.
    table = Table(
        title="budgets, as the sites state them",
        caption="\n".join(_common(plan)),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    last = plan.first_round + plan.rounds - 1
    heads = (
        "site", "of", "stated", "spent", f"after\nround {last}", "limit", "by", "rounds\nleft",
        "noise\nneeded", "2nd\nrun",
    )  # fmt: skip
    for head in heads:
        left = head in {"site", "of", "stated", "by"}
        # Words are folded, a figure never.
        table.add_column(
            head,
            justify="left" if left else "right",
            no_wrap=head not in {"site", "of", "stated"},
            overflow="fold",
            min_width=8 if head == "site" else None,
        )
    for budget in plan.budgets:
        table.add_row(*(Text(cell) for cell in _row(budget)))
    return table


def _common(plan: CampaignPlan) -> list[str]:
    said = []
    for level, name in _LEVELS.items():
        found = [budget for budget in plan.budgets if budget.level == level]
        if found:
            deltas = sorted({budget.delta for budget in found})
            spread = " to ".join(dict.fromkeys((f"{deltas[0]:g}", f"{deltas[-1]:g}")))
            said.append(f"{name} of a site: noise {found[0].noise:.4g}, delta {spread}")
    return said


def sentences(
    plan: CampaignPlan, *, has_store: bool, tuning: TuningCost | None = None
) -> list[str]:
    """Return what the tables come to, in words."""
    if not plan.budgets and plan.reason:
        return [f"no guarantee, nothing is charged against a budget: {plan.reason}"]
    said = [_worst(plan)] if plan.worst_site is not None else []
    if plan.ends_first is not None:
        said.append(_ends_first(plan))
    said += [
        f"{b.site}: the campaign is shown alone, its statement does not count: {b.complaint}"
        for b in plan.budgets
        if b.status == "does not hold"
    ]
    if not has_store:
        said.append("no store is reached: the campaign is shown alone, without what was spent")
    elif any(b.status == "not stated" for b in plan.budgets):
        said.append(
            "not stated: nothing is known of what was spent there; the campaign is shown alone, "
            "against its own limit"
        )
    if tuning is not None:
        said.append(_tuning(tuning))
    return said


def _worst(plan: CampaignPlan) -> str:
    last = plan.first_round + plan.rounds - 1
    return f"worst after round {last}: {plan.worst_site}, epsilon {plan.worst_epsilon:.2f}"


def _ends_first(plan: CampaignPlan) -> str:
    budget = next(
        b for b in plan.budgets if (b.site, b.level) == (plan.ends_first, plan.ends_first_level)
    )
    what = f"{budget.site} ends first: {budget.rounds_left} rounds left at noise {budget.noise:g}"
    if budget.refused_in is None:
        return f"{what}, enough for the {plan.rounds} planned"
    needed = (
        f"noise {budget.noise_needed:g} would fit all {plan.rounds}"
        if budget.noise_needed is not None
        else "no noise fits all that are planned"
    )
    return f"{what}, so it refuses round {budget.refused_in}; {needed}"


def _tuning(cost: TuningCost) -> str:
    return (
        f"choosing the best of {cost.mean_runs:g} runs: releasing only the best of a random number "
        f"of runs (Poisson, mean {cost.mean_runs:g}) costs epsilon {cost.best_of_random:.2f} at "
        f"delta {cost.delta:g}; releasing {cost.mean_runs:g} runs costs {cost.all_runs:.2f}; "
        f"a single run {cost.one_run:.2f}"
    )


def _row(budget: BudgetPlan) -> tuple[str, ...]:
    return (
        budget.site,
        _LEVELS[budget.level] if budget.unit in {"row", "site"} else budget.unit,
        budget.status,
        _figure(budget.spent),
        _figure(budget.epsilon_at_end, infinite="inf"),
        _NONE if budget.limit is None else f"{budget.limit:g}",
        budget.accountant,
        _count(budget.rounds_left),
        _NONE if budget.noise_needed is None else f"{budget.noise_needed:.4g}",
        _count(budget.second_campaign_rounds),
    )


def _cell(budget: BudgetPlan, index: int) -> Text:
    epsilon = budget.after[index].epsilon
    refused = budget.refused_in is not None and budget.after[index].round >= budget.refused_in
    return Text(_figure(epsilon, infinite="inf"), style="red" if refused else "")


def _head(group: Sequence[BudgetPlan]) -> str:
    name = group[0].site if len(group) == 1 else f"{len(group)} sites"
    status = "" if group[0].status == "stated" else f"\n{group[0].status}"
    level = "" if group[0].level == "record" else "\nas a whole"
    return f"{name}{level}{status}"


def _alike(budgets: Sequence[BudgetPlan]) -> list[list[BudgetPlan]]:
    groups: dict[object, list[BudgetPlan]] = {}
    for budget in budgets:
        groups.setdefault((budget.level, budget.status, budget.after), []).append(budget)
    return sorted(groups.values(), key=lambda g: -(g[0].epsilon_at_end or float("inf")))


def _count(value: int | None) -> str:
    return _NONE if value is None else str(value)


def _figure(value: float | None, *, infinite: str = _NONE) -> str:
    return infinite if value is None else f"{value:.2f}"
