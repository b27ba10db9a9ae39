"""A campaign's rounds and budgets as rows of text, the same at the terminal and in Prefect.

Figures are rounded here once, so that the two places never differ; both are views of the store.
A dash stands for what is not there, or not there yet.
"""

from collections.abc import Iterable, Sequence

from fl_core.rounds.documents import SiteAnswer
from fl_core.rounds.status import CampaignStatus, RoundStatus
from fl_core.updates.records import Spending

NONE = "-"


def round_rows(rounds: Sequence[RoundStatus]) -> list[dict[str, str]]:
    """Return rounds as rows of one table: whole sites have a column where any round states them."""
    has_whole = any(whole_site_epsilon(status) is not None for status in rounds)
    return [round_row(status, has_whole=has_whole) for status in rounds]


def round_row(status: RoundStatus, *, has_whole: bool | None = None) -> dict[str, str]:
    """Return one round as text by column, in the order of a table.

    Args:
        status: The round.
        has_whole: Whether there is a column for whole sites; None: where the round states them.
    """
    outcome, scores = status.outcome, status.evaluation
    worst = max((budget.epsilon for budget in status.budgets.values()), default=None)
    whole = whole_site_epsilon(status)
    shown = whole is not None if has_whole is None else has_whole
    return {
        "round": str(status.round),
        "outcome": "open" if outcome is None else outcome.status,
        "accuracy": _figure(None if scores is None else scores.accuracy, ".3f"),
        "macro F1": _figure(None if scores is None else scores.macro_f1, ".3f"),
        "worst epsilon": _figure(worst, ".2f"),
        **({"site epsilon": _figure(whole, ".2f")} if shown else {}),
        "kB up": _figure(status.bytes_up / 1000, ".0f"),
        "kB down": _figure(status.bytes_down / 1000, ".0f"),
        "seconds": _figure(status.seconds, ".1f"),
        "sites": _sites(status),
    }


def whole_site_epsilon(status: RoundStatus) -> float | None:
    """Return what the worst whole site had spent at a round; None where nobody states it.

    Under the coordinator's noise that is the federation's own statement, for every site.
    """
    stated = [budget.client for budget in status.budgets.values() if budget.client is not None]
    found = [item.epsilon for item in (*stated, status.federation) if item is not None]
    return max(found, default=None)


def budget_rows(status: CampaignStatus) -> list[dict[str, str]]:
    """Return the latest budget that every site stated, and the federation's, as text by column."""
    latest = {site: budget for item in status.rounds for site, budget in item.budgets.items()}
    rows: list[dict[str, str]] = []
    for site, budget in sorted(latest.items()):
        rows.append(_budget_row(site, budget))
        if budget.client is not None:
            rows.append(_budget_row(f"{site} as a whole", budget.client))
    return rows + [_budget_row("any site as a whole", spent) for spent in _federation(status)]


def _federation(status: CampaignStatus) -> Iterable[Spending]:
    stated = [item.federation for item in status.rounds if item.federation is not None]
    return stated[-1:]


def _budget_row(site: str, budget: Spending) -> dict[str, str]:
    return {
        "site": site,
        "epsilon spent": f"{budget.epsilon:.2f}",
        "limit": f"{budget.epsilon_limit:g}",
        "left": f"{max(0.0, budget.epsilon_limit - budget.epsilon):.2f}",
        "delta": f"{budget.delta:g}",
        "accountant": budget.accountant,
        "rounds left": str(budget.rounds_left),
    }


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _sites(status: RoundStatus) -> str:
    if not status.answers:
        said = f"{len(status.answered)} of {len(status.cohort)} have answered"
        return f"{said}: {', '.join(status.answered)}" if status.answered else said
    others = [
        f"{site}: {_answer(answer)}"
        for site, answer in sorted(status.answers.items())
        if answer.status != "accepted"
    ]
    accepted = len(status.answers) - len(others)
    why = [] if status.outcome is None or not status.outcome.reason else [status.outcome.reason]
    return "; ".join([*why, f"{accepted} of {len(status.answers)} accepted", *others])


def _answer(answer: SiteAnswer) -> str:
    named = [*answer.rules, *([] if answer.error is None else [answer.error])]
    rules = f" ({', '.join(named)})" if named else ""
    return f"{answer.status} {answer.reason}{rules}".rstrip()
