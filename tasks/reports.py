"""Prefect artifacts: what a person sees in the Prefect UI beside the states.

Everything shown comes from documents of the store; an artifact is a view and never read back.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from fl_core.rounds.documents import RoundPlan, SiteAnswer
from fl_core.rounds.status import CampaignStatus
from tasks.round_table import budget_rows, round_rows

PERCENT = 100.0

log = logging.getLogger(__name__)


class RoundProgress:
    """A progress bar of one round: which sites have answered, nothing from inside a site.

    A server that is away costs the bar, never the round.
    """

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._id: UUID | None = None

    def update(self, answers: Mapping[str, SiteAnswer]) -> None:
        """Show the share of sites that have answered, and who is still due."""
        due = [site for site in self._plan.cohort if site not in answers]
        share = PERCENT * len(answers) / len(self._plan.cohort)
        text = f"waiting for {', '.join(due)}" if due else "all sites have answered"
        try:
            if self._id is None:
                key = f"round-{self._plan.round:04d}-progress"
                self._id = cast("UUID", create_progress_artifact(share, key=key, description=text))
            else:
                update_progress_artifact(self._id, progress=share, description=text)
        except (HTTPError, PrefectException) as error:
            log.warning("progress not shown round=%d: %s", self._plan.round, error)


def report_campaign(
    status: CampaignStatus,
    *,
    mlflow_url: str | None,
    statement_url: str | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write the round table and the budget table of a campaign.

    Args:
        status: What the store says.
        mlflow_url: Where its charts are, or None.
        statement_url: Page of the privacy statement of its latest version, or None.
        warnings: Settings that are allowed and likely a mistake, a line each.
    """
    said = "".join(f"\n\nWarning: {line}" for line in warnings)
    link = f" Charts: [MLflow]({mlflow_url})." if mlflow_url else ""
    create_table_artifact(
        key=f"{status.campaign_id}-rounds",
        table=round_rows(status.rounds[::-1]),
        description=f"Rounds of campaign **{status.campaign_id}**, newest first.{link}{said}",
    )
    rows = budget_rows(status)
    page = f" [Privacy statement of the latest version]({statement_url})." if statement_url else ""
    if rows:
        create_table_artifact(
            key=f"{status.campaign_id}-budgets",
            table=rows,
            description="Privacy budgets as the sites state them, over all their campaigns." + page,
        )
