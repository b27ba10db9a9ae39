"""The picture of a plan: epsilon after every round, site by site, against the sites' limits.

Drawn without a display and without state of its own, so that a coordinator's worker can make it.
Sites whose curves are the same share one line; more than ten lines keep the worst ones.
"""

import io
from collections.abc import Sequence
from typing import Any

from fl_core.privacy.plan_documents import BudgetPlan, CampaignPlan

_LINES = 10
_INK, _QUIET = "#1f2933", "#9aa5b1"
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dvph"
_DPI = 150
_TITLES = {"record": "one unit of a site's rows", "client": "a site's whole data"}


def draw_plan(plan: CampaignPlan) -> bytes:
    """Return a PNG of a plan; a campaign without a guarantee has an empty plot that says so."""
    # Made without pyplot, which keeps every figure and looks for a display.
    from matplotlib.figure import Figure

    levels = sorted({budget.level for budget in plan.budgets}, reverse=True) or ["record"]
    figure: Any = Figure(figsize=(7.2, 3.6 * len(levels)), layout="constrained")
    for number, level in enumerate(levels, start=1):
        axes = figure.add_subplot(len(levels), 1, number)
        budgets = [budget for budget in plan.budgets if budget.level == level]
        _draw_level(axes, budgets)
        axes.set_title(
            f"{plan.campaign}: {_TITLES[level]}", loc="left", fontsize=11, color=_INK, weight="bold"
        )
        axes.set_xlabel("after round")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": "fedloom"})
    return target.getvalue()


def _draw_level(axes: Any, budgets: Sequence[BudgetPlan]) -> None:
    axes.set_ylabel("epsilon")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if not budgets:
        axes.text(0.5, 0.5, "no guarantee, no epsilon", ha="center", transform=axes.transAxes)
        return
    groups = _alike(budgets)
    for number, group in enumerate(groups):
        _draw_curve(axes, group, colour=_COLOURS[number % len(_COLOURS)], marker=_marker(number))
    for limit in sorted({b.limit for b in budgets if b.limit is not None}):
        axes.axhline(limit, color=_QUIET, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(
            f"limit {limit:g}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_QUIET,
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_curve(axes: Any, group: Sequence[BudgetPlan], *, colour: str, marker: str) -> None:
    budget = group[0]
    points = [(p.round, p.epsilon) for p in budget.after if p.epsilon is not None]
    if budget.spent is not None:
        points.insert(0, (budget.after[0].round - 1, budget.spent))
    axes.plot(
        *zip(*points, strict=True),
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        linestyle="-" if budget.status == "stated" else ":",
        label=_label(group),
    )


def _alike(budgets: Sequence[BudgetPlan]) -> list[list[BudgetPlan]]:
    groups: dict[object, list[BudgetPlan]] = {}
    for budget in budgets:
        curve = (budget.spent, tuple(p.epsilon for p in budget.after), budget.status)
        if budget.epsilon_at_end is not None:
            groups.setdefault(curve, []).append(budget)
    worst_first = sorted(groups.values(), key=lambda g: -(g[0].epsilon_at_end or 0.0))
    return worst_first[:_LINES]


def _label(group: Sequence[BudgetPlan]) -> str:
    names = [budget.site for budget in group]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return shown if group[0].status == "stated" else f"{shown} ({group[0].status})"


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]
