"""The note on a campaign's page: a table of its rounds, newest first, and the link to the charts.

It is rebuilt from what MLflow holds each time, so it does not depend on the order in which rounds
were logged. MLflow shows the first lines of a note and folds the rest, hence the order.
"""

from collections.abc import Sequence
from typing import Any

from fl_core.campaign.campaign import Campaign
from tasks.tracking_client import NOTE_TAG, STATEMENT_PAGE, artifact_url, chart_url
from tasks.tracking_facts import guarantee
from tasks.tracking_view import VIEW_NAME

_ROWS = 40
_HEADER = (
    # Hard spaces: the page sets no distance between columns.
    "| round&nbsp; | accuracy&nbsp; | macro-F1&nbsp; | epsilon (worst site)&nbsp; "
    "| epsilon left&nbsp; | version&nbsp; | outcome |\n"
    "|---|---|---|---|---|---|---|"
)


def campaign_note(client: Any, campaign: Campaign, *, experiment_id: str, parent_id: str) -> str:
    """Return the note of a campaign from the runs of its rounds, as markdown."""
    runs = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'", max_results=10000
    )
    newest = sorted(runs, key=lambda run: int(run.data.tags["round"]), reverse=True)
    link = chart_url(client.tracking_uri, experiment_id)
    older = (
        f"\n\n{len(newest) - _ROWS} older rounds are not in this table." if newest[_ROWS:] else ""
    )
    statement = _statement_link(client, newest, experiment_id=experiment_id)
    latest = newest[0].data.tags[NOTE_TAG]
    return (
        f"{latest}. **[{VIEW_NAME}: open the charts]({link})**{statement}\n\n"
        f"{_HEADER}\n" + "\n".join(map(_row, newest[:_ROWS])) + older + "\n\n"
        f"Guarantee: {guarantee(campaign)}."
    )


def _statement_link(client: Any, newest: Sequence[Any], *, experiment_id: str) -> str:
    released = next((run for run in newest if "model_version" in run.data.tags), None)
    if released is None:
        return ""
    url = artifact_url(
        client.tracking_uri, experiment_id, run_id=released.info.run_id, path=STATEMENT_PAGE
    )
    return f" · [privacy statement of version {released.data.tags['model_version']}]({url})"


def _row(run: Any) -> str:
    metrics, tags = run.data.metrics, run.data.tags
    cells = (
        tags["round"],
        _figure(metrics.get("eval/accuracy"), 3),
        _figure(metrics.get("eval/macro_f1"), 3),
        _figure(metrics.get("dp/epsilon"), 2),
        _figure(metrics.get("dp/epsilon_left"), 2),
        tags.get("model_version", "-"),
        tags["outcome"] + (f": {tags['reason']}" if "reason" in tags else ""),
    )
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
