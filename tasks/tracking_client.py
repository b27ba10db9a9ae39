"""The connection to MLflow, and finding what was logged before.

MLflow has no unique key and no conditional create, so everything fedloom writes carries the tag
``fedloom.key`` and is looked up by it first. A create whose answer got lost is retried inside the
client and may leave two things of one key; the look-up keeps one, always the same, and removes the
rest. That is safe with a single writer per campaign only, which the caller provides.

The client's own settings are made here, in code, before MLflow is imported: its defaults wait four
minutes for a server that refuses, and cut long values without a word.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fl_core.errors import StoreError, StoreUnavailable
from tasks.tracking_view import VIEW_KEY, VIEW_NAME, VIEW_TAG, view_tag

KEY_TAG = "fedloom.key"
CHART_VIEW = "compareRunsMode=CHART&workflowType=machine_learning"
NOTE_TAG = "mlflow.note.content"
STATEMENT_PAGE = "statement.html"
"""File of a round's run: the privacy statement of its version."""

_SETTINGS = {
    # mlflow 3.17: waits are 0, 1, 2 s with jitter; about 2.5 s in all for a server that refuses.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output belongs to the command: with --json it holds one document.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

T = TypeVar("T")


def connect(tracking_uri: str | None = None) -> Any:
    """Return an ``MlflowClient`` with fedloom's settings; nothing is sent yet.

    Args:
        tracking_uri: Address of the server; None takes ``MLFLOW_TRACKING_URI``.

    Raises:
        StoreError: No address; MLflow would quietly write into a file of the working folder.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise StoreError(
            "no address of an MLflow server", hint="set MLFLOW_TRACKING_URI to the server's URL"
        )
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri.rstrip("/"))


@contextmanager
def mlflow_border(what: str) -> Iterator[None]:
    """Turn MLflow's errors into ours.

    Raises:
        StoreUnavailable: The server does not answer, or answers 5xx; the round can be logged later.
        StoreError: The server refused what was asked; asking again will not help.
    """
    import requests
    from mlflow.exceptions import MlflowException, RestException

    try:
        yield
    except RestException as error:
        if error.get_http_status_code() >= requests.codes.server_error:
            raise StoreUnavailable(f"mlflow cannot {what}: {_one_line(error)}") from error
        raise StoreError(f"mlflow refused to {what}: {_one_line(error)}") from error
    except (MlflowException, requests.RequestException) as error:
        raise StoreUnavailable(
            f"mlflow cannot {what}: {_one_line(error)}",
            hint="the round stands; it is logged when mlflow is back",
        ) from error


def _one_line(error: Exception) -> str:
    return str(error).replace("\n", " ")[:300]


def chart_url(tracking_uri: str, experiment_id: str) -> str:
    """Return the page that shows quality against epsilon with no further click.

    MLflow 3.17 opens an experiment in its GenAI view, which hides all metrics; the query switches
    to the chart view of machine learning runs, and to the saved view that every experiment gets.
    """
    page = f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{page}?{CHART_VIEW}&viewStateShareKey={VIEW_KEY}"


def artifact_url(tracking_uri: str, experiment_id: str, *, run_id: str, path: str) -> str:
    """Return the page that shows one file of a run."""
    runs = f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return f"{runs}/{run_id}/artifacts/{path}"


def ensure_experiment(client: Any, name: str, *, created_ms: int) -> str:
    """Return the id of the experiment of that name, which is made if there is none.

    The saved view and the note are set where they are missing; what people change stays.

    Raises:
        StoreError: A person deleted the experiment; its name stays taken until it is restored.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        kind = {"mlflow.experimentKind": "custom_model_development"}
        client.create_experiment(name, tags=kind)
        found = client.get_experiment_by_name(name)
    identity = str(found.experiment_id)
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"mlflow experiment {name!r} is deleted, so its name can hold no new runs",
            hint=f"restore it: mlflow experiments restore --experiment-id {identity}",
        )
    note = f"[{VIEW_NAME}: open the charts]({chart_url(client.tracking_uri, identity)})"
    for tag, value in ((VIEW_TAG, view_tag(created_ms=created_ms)), (NOTE_TAG, note)):
        if tag not in found.tags:
            client.set_experiment_tag(identity, tag, value)
    return identity


def ensure_run(  # noqa: PLR0913  what MLflow takes to make a run
    client: Any, experiment_id: str, key: str, *, start_ms: int, name: str, tags: dict[str, str]
) -> Any:
    """Return the run with ``fedloom.key`` = ``key``, made with these tags if there is none."""

    def find() -> Any | None:
        found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
        return keep_one(found, order=_run_id, drop=lambda run: client.delete_run(_run_id(run)))

    run = find()
    if run is None:
        client.create_run(
            experiment_id, start_time=start_ms, run_name=name, tags={KEY_TAG: key, **tags}
        )
        run = find()
    return run


def _run_id(run: Any) -> str:
    return str(run.info.run_id)


def keep_one(
    found: Sequence[T], *, order: Callable[[T], Any], drop: Callable[[T], None]
) -> T | None:
    """Return the first of ``found`` by ``order``, or None; the others are dropped."""
    ranked = sorted(found, key=order)
    for double in ranked[1:]:
        drop(double)
    return ranked[0] if ranked else None
