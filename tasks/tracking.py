"""A round in MLflow: one run, one point on every curve, one model version.

MLflow is a view of the store. Whatever is written here can be written again: runs, models and
versions are found by their key first, and every time is the round's own closing time, never now.
So a crash in the middle, or a server that was away, is repaired by calling ``log_round`` again.

Layout: an experiment per registered model; in it a run per campaign, which carries the curves
over rounds, because only a parent's metrics are drawn with no click; and below it a run per round.
The caller lets one writer at a time log a campaign, and logs its rounds in order.
"""

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fl_core.artifacts.documents import Document, to_bytes
from fl_core.campaign.campaign import Campaign
from tasks.tracking_client import (
    NOTE_TAG,
    STATEMENT_PAGE,
    artifact_url,
    chart_url,
    connect,
    ensure_experiment,
    ensure_run,
    mlflow_border,
)
from tasks.tracking_facts import (
    RoundLog,
    campaign_params,
    frontier_step,
    milliseconds,
    outcome_tags,
    round_metrics,
    round_params,
)
from tasks.tracking_history import set_aside_other
from tasks.tracking_model import ensure_version, logged_model_id, point_candidate
from tasks.tracking_note import campaign_note

__all__ = ["LoggedRound", "RoundLog", "close_campaign", "log_round", "write_round"]

SOURCE_TAGS = {"mlflow.user": "coordinator", "mlflow.source.name": "fedloom"}
_STATUS = {"released": "FINISHED", "skipped": "KILLED", "failed": "FAILED"}
_BATCH = 500


class LoggedRound(Document):
    """Where a round is found in MLflow.

    Attributes:
        round: From 1.
        run_id: Run of the round.
        parent_run_id: Run of the campaign.
        experiment_id: Experiment of both.
        model_version: Version of the registered model; None unless released with its files.
        model_uri: ``models:/<name>/<version>``, or None.
        chart_url: Page that shows quality against epsilon.
    """

    round: int
    run_id: str
    parent_run_id: str
    experiment_id: str
    model_version: str | None = None
    model_uri: str | None = None
    chart_url: str

    @property
    def statement_url(self) -> str | None:
        """Page of the version's privacy statement; None without a version."""
        server, _, _ = self.chart_url.partition("/#/")
        if self.model_version is None:
            return None
        return artifact_url(server, self.experiment_id, run_id=self.run_id, path=STATEMENT_PAGE)


def log_round(log: RoundLog, *, tracking_uri: str | None = None) -> LoggedRound:
    """Log a round, or finish logging one; the second time changes nothing.

    Args:
        log: The round.
        tracking_uri: Address of the MLflow server; None takes ``MLFLOW_TRACKING_URI``.

    Raises:
        StoreUnavailable: The server does not answer, known within seconds; log the round later.
        StoreError: The server refuses what was asked, or there is no address.
        ObjectCorrupt: The adapter's files are not those that the outcome names.
    """
    client = connect(tracking_uri)
    with mlflow_border(f"log round {log.outcome.round} of {log.campaign.id}"):
        return write_round(client, log)


def write_round(client: Any, log: RoundLog) -> LoggedRound:
    """Write what is missing of a round through an ``MlflowClient``; raises MLflow's own errors.

    The round's run is closed last but for the note, so a run that is not RUNNING is complete.
    """
    experiment_id, parent_id = _ensure_campaign(client, log)
    set_aside_other(client, log, experiment_id=experiment_id)
    run_id = _ensure_round(client, log, experiment_id=experiment_id, parent_id=parent_id)
    version = None
    if log.outcome.status == "released" and log.adapter_files is not None:
        version = ensure_version(client, log, experiment_id=experiment_id, run_id=run_id)
        point_candidate(client, log.campaign.model_name, version)
        client.set_tag(run_id, "model_version", version.version)
    model_id = None if version is None else logged_model_id(version)
    _write_points(client, run_id, _points(log, model_id=model_id))
    _write_points(client, parent_id, [*_points(log, model_id=None), *_frontier(log)])
    _write_documents(client, run_id, _documents(log))
    _write_documents(client, parent_id, _plan(log), folder="plan")
    client.set_terminated(
        run_id, _STATUS[log.outcome.status], end_time=milliseconds(log.outcome.closed)
    )
    url = chart_url(client.tracking_uri, experiment_id)
    client.set_tag(
        parent_id,
        NOTE_TAG,
        campaign_note(client, log.campaign, experiment_id=experiment_id, parent_id=parent_id),
    )
    if log.outcome.round == log.campaign.max_rounds:
        client.set_terminated(parent_id, "FINISHED", end_time=milliseconds(log.outcome.closed))
    return LoggedRound(
        round=log.outcome.round,
        run_id=run_id,
        parent_run_id=parent_id,
        experiment_id=experiment_id,
        model_version=None if version is None else version.version,
        model_uri=version and f"models:/{log.campaign.model_name}/{version.version}",
        chart_url=url,
    )


def close_campaign(
    campaign: Campaign, *, closed: datetime, reason: str, tracking_uri: str | None = None
) -> None:
    """Mark a campaign that ends before its last round, such as one whose budget is spent.

    Args:
        campaign: A campaign with at least one logged round.
        closed: When its last round closed.
        reason: Why it ended, one line.
        tracking_uri: Address of the MLflow server; None takes ``MLFLOW_TRACKING_URI``.

    Raises:
        StoreUnavailable: The server does not answer.
        StoreError: The server refuses what was asked, or there is no address.
    """
    client = connect(tracking_uri)
    with mlflow_border(f"close {campaign.id}"):
        experiment_id = ensure_experiment(
            client, campaign.model_name, created_ms=milliseconds(closed)
        )
        run = _parent(client, campaign, experiment_id=experiment_id, start=closed)
        client.set_tag(run.info.run_id, "ended", reason)
        client.set_terminated(run.info.run_id, "FINISHED", end_time=milliseconds(closed))


def _ensure_campaign(client: Any, log: RoundLog) -> tuple[str, str]:
    campaign = log.campaign
    opened_ms = milliseconds(log.outcome.opened)
    experiment_id = ensure_experiment(client, campaign.model_name, created_ms=opened_ms)
    run = _parent(client, campaign, experiment_id=experiment_id, start=log.outcome.opened)
    params = campaign_params(campaign)
    if set(params) - set(run.data.params):
        _write_params(client, run.info.run_id, params)
    return experiment_id, str(run.info.run_id)


def _parent(client: Any, campaign: Campaign, *, experiment_id: str, start: datetime) -> Any:
    return ensure_run(
        client,
        experiment_id,
        campaign.id,
        start_ms=milliseconds(start),
        name=campaign.id,
        tags={"campaign_digest": campaign.digest, **SOURCE_TAGS},
    )


def _ensure_round(client: Any, log: RoundLog, *, experiment_id: str, parent_id: str) -> str:
    run = ensure_run(
        client,
        experiment_id,
        log.key,
        start_ms=milliseconds(log.outcome.opened),
        name=f"{log.campaign.id} r{log.outcome.round:03d}",
        tags={"mlflow.parentRunId": parent_id, **SOURCE_TAGS, **outcome_tags(log)},
    )
    params = round_params(log)
    if set(params) - set(run.data.params):
        _write_params(client, run.info.run_id, params)
    return str(run.info.run_id)


def _write_params(client: Any, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])


def _points(log: RoundLog, *, model_id: str | None) -> list[Any]:
    from mlflow.entities import Metric

    when, step = milliseconds(log.outcome.closed), log.outcome.round
    return [
        Metric(name, value, when, step, model_id=model_id)
        for name, value in round_metrics(log).items()
    ]


def _frontier(log: RoundLog) -> list[Any]:
    from mlflow.entities import Metric

    step = frontier_step(log)
    if step is None or log.evaluation is None:
        return []
    when = milliseconds(log.outcome.closed)
    return [Metric("frontier/accuracy", log.evaluation.accuracy, when, step)]


def _write_points(client: Any, run_id: str, points: list[Any]) -> None:
    for start in range(0, len(points), _BATCH):
        client.log_batch(run_id, metrics=points[start : start + _BATCH])


def _documents(log: RoundLog) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if log.statement_json is not None:
        files["statement.json"] = log.statement_json
    if log.statement_markdown is not None:
        files["statement.md"] = log.statement_markdown.encode()
    if log.statement_html is not None:
        files[STATEMENT_PAGE] = log.statement_html.encode()
    if log.evaluation is not None:
        files["evaluation.json"] = to_bytes(log.evaluation)
    return files


def _plan(log: RoundLog) -> dict[str, bytes]:
    if log.plan_json is None or log.plan_png is None:
        return {}
    return {"plan.json": log.plan_json, "epsilon.png": log.plan_png}


def _write_documents(
    client: Any, run_id: str, files: Mapping[str, bytes], *, folder: str | None = None
) -> None:
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="fedloom-round-") as scratch:
        for name, data in files.items():
            (Path(scratch) / name).write_bytes(data)
        client.log_artifacts(run_id, scratch, folder)
