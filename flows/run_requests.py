"""What a run asks of a site's worker: a flow by its name, with plain values, and nothing more.

A deployment can name code, commands, steps and environments, and a stock worker does what it says.
None of it is used here. But whoever names it is a broken or a hostile coordinator, so the run is
refused and the site's operator sees why.
"""

from typing import Any, Protocol
from uuid import UUID

import httpx
from prefect.exceptions import ObjectNotFound

from flows.patience import until_done


class ReadsDeployments(Protocol):
    """The part of Prefect's client that is used here."""

    async def read_deployment(self, deployment_id: UUID | str, /) -> Any:
        """Return a deployment."""


class AsksForRun(Protocol):
    """The part of a flow run that is used here."""

    @property
    def deployment_id(self) -> UUID | None:
        """The deployment it was made from."""

    @property
    def job_variables(self) -> dict[str, Any] | None:
        """What it sets over its deployment."""


async def asked_for_more(client: ReadsDeployments, flow_run: AsksForRun) -> list[str]:
    """Return in words what a run and its deployment name beside a flow; empty for an honest one.

    A deployment that cannot be read is more than is allowed too.
    """
    found = {"job variables"} if flow_run.job_variables else set()
    deployment_id = flow_run.deployment_id
    if deployment_id is None:
        return sorted(found)
    try:
        asked = await until_done(lambda: client.read_deployment(deployment_id))
    except (ObjectNotFound, httpx.HTTPStatusError):
        return ["a deployment that cannot be read"]
    named = {
        "entrypoint": asked.entrypoint,
        "path": asked.path,
        "pull steps": asked.pull_steps,
        "job variables": asked.job_variables,
        "storage": asked.storage_document_id,
        "infrastructure": asked.infrastructure_document_id,
    }
    return sorted(found | {what for what, value in named.items() if value})
