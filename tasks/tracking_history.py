"""A round that MLflow knows from a history that the store has lost.

Where an older backup of the store is restored beside a newer MLflow, a round is opened anew and may
come out otherwise. What MLflow holds of the first one stays for people to see, under a key of its
own, so that the round as the store has it gets its own run and version; a version that stood for
another adapter than its round's would be the one wrong thing that nobody notices.
"""

import logging
from typing import Any

from tasks.tracking_client import KEY_TAG
from tasks.tracking_facts import RoundLog

FORGOTTEN_TAG = "fedloom.forgotten"
FORGOTTEN = "the store was set back to before this round, and the round then came out otherwise"

log = logging.getLogger(__name__)


def set_aside_other(client: Any, round_log: RoundLog, *, experiment_id: str) -> None:
    """Give what MLflow holds of another outcome of this round a key of its own; safe to repeat.

    Args:
        client: An ``MlflowClient``.
        round_log: The round as the store has it.
        experiment_id: Experiment of the campaign.
    """
    name, key = round_log.campaign.model_name, round_log.key
    is_keyed = f"tags.`{KEY_TAG}` = '{key}'"
    runs = client.search_runs([experiment_id], is_keyed)
    versions = client.search_model_versions(f"name = '{name}' and {is_keyed}") if runs else []
    if not any(_is_other(run, versions, round_log) for run in runs):
        return
    log.warning("round came out otherwise in an earlier history round=%s", key)
    tags = {KEY_TAG: f"{key}/forgotten-{runs[0].info.run_id}", FORGOTTEN_TAG: FORGOTTEN}
    for version in versions:
        for tag, value in tags.items():
            client.set_model_version_tag(name, version.version, tag, value)
    for model in client.search_logged_models([experiment_id], is_keyed):
        client.set_logged_model_tags(model.model_id, tags)
    # The runs last: they are what a repetition finds.
    for run in runs:
        for tag, value in reversed(tags.items()):
            client.set_tag(run.info.run_id, tag, value)


def _is_other(run: Any, versions: list[Any], round_log: RoundLog) -> bool:
    if run.data.tags.get("outcome") != round_log.outcome.status:
        return True
    if not versions:
        # A run that knows its version, and none under this key: setting aside was cut off.
        return "model_version" in run.data.tags
    adapters = {version.tags.get("adapter_sha256") for version in versions}
    return adapters != {round_log.outcome.result_hash}
