"""A campaign's rounds and budgets as rows of text, the same at the terminal and in Prefect.

Figures are rounded here once, so that the two places never differ; both are views of the store.
A dash stands for what is not there, or not there yet.
"""

from fl_core.rounds.documents import SiteAnswer
from fl_core.rounds.status import CampaignStatus, RoundStatus

NONE = "-"


def round_row(status: RoundStatus) -> dict[str, str]:
    """Return one round as text by column, in the order of a table."""
    outcome, scores = status.outcome, status.evaluation
    worst = max((budget.epsilon for budget in status.budgets.values()), default=None)
    return {
        "round": str(status.round),
        "outcome": "open" if outcome is None else outcome.status,
        "accuracy": _figure(None if scores is None else scores.accuracy, ".3f"),
        "macro F1": _figure(None if scores is None else scores.macro_f1, ".3f"),
        "worst epsilon": _figure(worst, ".2f"),
        "kB up": _figure(status.bytes_up / 1000, ".0f"),
        "kB down": _figure(status.bytes_down / 1000, ".0f"),
        "seconds": _figure(status.seconds, ".1f"),
        "sites": _sites(status),
    }


def budget_rows(status: CampaignStatus) -> list[dict[str, str]]:
    """Return the latest budget that every site stated, as text by column."""
    latest = {site: budget for item in status.rounds for site, budget in item.budgets.items()}
    return [
        {
            "site": site,
            "epsilon spent": f"{budget.epsilon:.2f}",
            "limit": f"{budget.epsilon_limit:g}",
            "left": f"{max(0.0, budget.epsilon_limit - budget.epsilon):.2f}",
            "delta": f"{budget.delta:g}",
            "accountant": budget.accountant,
            "rounds left": str(budget.rounds_left),
        }
        for site, budget in sorted(latest.items())
    ]


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
    return "; ".join([f"{accepted} of {len(status.answers)} accepted", *others])


def _answer(answer: SiteAnswer) -> str:
    rules = f" ({', '.join(answer.rules)})" if answer.rules else ""
    return f"{answer.status} {answer.reason}{rules}".rstrip()
