"""An audit in MLflow: figures on the campaign's run, and the report as an artifact.

The names say "audit"; a lower bound that some attack reached is never logged as epsilon.
"""

import tempfile
from pathlib import Path

from fl_core.artifacts.documents import to_bytes
from fl_core.privacy.audit_documents import AuditReport
from tasks.tracking_client import KEY_TAG, connect, mlflow_border
from tasks.tracking_facts import milliseconds


def log_audit(report: AuditReport, *, number: int, tracking_uri: str) -> str | None:
    """Log an audit on its campaign's run and return the run's id; None if there is no run yet.

    Raises:
        PrivacyError: The report speaks of private rows.
        StoreUnavailable: The server does not answer.
        StoreError: The server refuses what was asked.
    """
    from mlflow.entities import Metric

    client = connect(tracking_uri)
    with mlflow_border(f"log an audit of {report.campaign_id}"):
        experiments = [found.experiment_id for found in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{report.campaign_id}'")
        if not runs:
            return None
        run_id, when = str(runs[0].info.run_id), milliseconds(report.made)
        figures = audit_metrics(report)
        points = [Metric(name, value, when, number) for name, value in figures.items()]
        client.log_batch(run_id, metrics=points)
        client.set_tag(run_id, "audit", f"{report.verdict} ({report.rows} rows)")
        with tempfile.TemporaryDirectory(prefix="fedloom-audit-") as folder:
            file = Path(folder) / f"{number:04d}.json"
            file.write_bytes(to_bytes(report))
            client.log_artifact(run_id, str(file), "audits")
    return run_id


def audit_metrics(report: AuditReport) -> dict[str, float]:
    """Return an audit's figures by their names in MLflow."""
    figures = {
        "audit/lower_bound": report.lower_bound,
        "audit/ceiling": report.gradient.ceiling,
        "audit/claimed_epsilon": report.claimed_epsilon,
        "audit/confidence": report.confidence,
        "audit/guesses": float(report.gradient.guesses),
        "audit/canaries": float(report.gradient.canaries),
        "audit/failed_checks": float(len(report.failed_checks)),
    }
    if report.text is not None:
        figures["audit/text_lower_bound"] = report.text.lower_bound
    if report.membership is not None:
        figures["audit/membership_auc"] = report.membership.auc
    return figures
