"""Campaigns as Jobs of a Kubernetes cluster: a Job's manifest made into a work pool's template.

An operator writes the Job like every other manifest, and `fedloom register` hands it to Prefect.
The template has no variables: image, command, environment and volumes are the manifest's, so
nobody who starts a run says what runs. Prefect's worker adds what names the run. What it would
refuse only when a campaign is started is refused here, when the pool is registered.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from fl_core.errors import CampaignError

CONTAINER = "prefect-job"
"""The name of the container that prefect-kubernetes puts a run into."""

_MAX_BYTES = 64 << 10
# Pulling an image of 1.3 GB onto a new node.
_POD_STARTS_WITHIN_S = 600


def job_template(path: Path) -> dict[str, Any]:
    """Read the manifest of a Job and return the base job template of a pool that makes such.

    Raises:
        CampaignError: No readable manifest, or one that Prefect's worker could not start runs from.
    """
    job = _read(path)
    for found, expected in _complaints(job):
        raise CampaignError(f"{path}: found {found}, expected {expected}; mend the manifest")
    manifest = deepcopy(job)
    # prefect-kubernetes 0.8.0 looks for both in the pod's part, where Kubernetes ignores them.
    manifest["spec"]["template"]["spec"] |= {"parallelism": 1, "completions": 1}
    configuration = {
        "namespace": job["metadata"]["namespace"],
        "job_manifest": manifest,
        "pod_watch_timeout_seconds": _POD_STARTS_WITHIN_S,
        "stream_output": False,
    }
    variables = {"type": "object", "properties": {}, "additionalProperties": False}
    return {"job_configuration": configuration, "variables": variables}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()[: _MAX_BYTES + 1]
        documents = list(yaml.safe_load_all(text)) if len(text) <= _MAX_BYTES else []
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise CampaignError(
            f"{path} is not readable as yaml ({type(error).__name__}), expected the manifest of "
            "one job; deployments/kubernetes/campaign-jobs.yaml holds one"
        ) from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise CampaignError(
            f"{path} holds {len(documents)} documents or more than {_MAX_BYTES} bytes, expected "
            "the manifest of one job"
        )
    return documents[0]


def _complaints(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what Prefect's worker could not use, with what it needs in its place."""
    kind = (job.get("apiVersion"), job.get("kind"))
    if kind != ("batch/v1", "Job"):
        return [(f"{kind[0]} {kind[1]}", "batch/v1 Job")]
    metadata, spec = _part(job, "metadata"), _part(job, "spec")
    pod = _part(_part(spec, "template"), "spec")
    containers = pod.get("containers")
    container = containers[0] if isinstance(containers, list) and containers else {}
    wanted = [
        ("metadata.name", metadata.get("name"), None, "none, each run's job has its own"),
        ("spec.backoffLimit", spec.get("backoffLimit"), 0, "0, a run goes on and is not repeated"),
        ("restartPolicy", pod.get("restartPolicy"), "Never", "Never"),
        ("name of the container", container.get("name"), CONTAINER, CONTAINER),
        ("command", container.get("command"), None, "none, the image's entrypoint reads secrets"),
        ("args", container.get("args"), None, "none, prefect says which run it is"),
    ]
    found = [(f"{what} {have!r}", why) for what, have, want, why in wanted if have != want]
    stated = {"metadata.namespace": metadata.get("namespace"), "image": container.get("image")}
    return found + [(f"no {what}", "it to be stated") for what, have in stated.items() if not have]


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}
