"""What Prefect knows of fedloom: work pools and deployments, made again at every start.

Registering is idempotent, so the demo, ``fedloom up`` and ``fedloom enrol`` all call it. A site's
deployment names no code, no path and no pull step: the site's worker looks the flow's name up
among what is installed there (``flows.site_worker``), and a stock worker started on such a pool by
mistake finds nothing to run. The coordinator never imports a site's flow, which would pull in
torch: parameter schemas of those flows are read from their source text.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import (
    ParameterSchema,
    parameter_schema,
    parameter_schema_from_entrypoint,
)
from prefect.utilities.importtools import import_object

from fl_core.errors import CampaignError, ServerFailed
from flows.prefect_names import (
    COORDINATOR_POOL,
    EVALUATE_RELEASE,
    EVALUATION_POOL,
    LOCK_CAMPAIGN,
    RUN_CAMPAIGN,
    SITE_SESSION,
    WORKER_TYPE,
    site_pool,
)


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool.

    Attributes:
        name: Its name.
        type: Prefect's worker type.
        description: What a person reads on the pool's page.
        concurrency_limit: Runs at one time over all workers; None is unbounded. Of a pool that
            people may change it is the limit at first.
        template: Base job template; None is that of the type.
    """

    name: str
    type: str
    description: str
    concurrency_limit: int | None = None
    template: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment.

    Attributes:
        flow_name: Name of the flow.
        name: Name of the deployment under that flow.
        pool: Name of its work pool.
        source: ``module.function`` that says which parameters there are.
        description: What a person reads above the start form.
        entrypoint: What a stock worker imports, or None where the worker decides itself.
        tags: Tags of the deployment and its runs.
    """

    flow_name: str
    name: str
    pool: str
    source: str
    description: str
    entrypoint: str | None = None
    tags: tuple[str, ...] = field(default=())

    @property
    def full_name(self) -> str:
        """``flow/deployment``, as Prefect addresses it."""
        return f"{self.flow_name}/{self.name}"


def coordinator_pool(*, at_first: int | None, job: Mapping[str, Any] | None = None) -> Pool:
    """Return the pool in which campaigns run.

    Args:
        at_first: Campaigns at one time in a pool that is made now; None is unbounded.
        job: Template of a Kubernetes pool; None: processes of a worker, or the pool as it is.
    """
    kind = "process" if job is None else "kubernetes"
    said = "Campaigns and their rounds, at the coordinator."
    return Pool(COORDINATOR_POOL, kind, said, at_first, job)


def pools(sites: Iterable[str], *, coordinator: Pool | None = None) -> list[Pool]:
    """List the work pools of a federation with these enrolled sites."""
    own = [
        coordinator or coordinator_pool(at_first=None),
        Pool(EVALUATION_POOL, WORKER_TYPE, "Evaluates releases on the public holdout."),
    ]
    return own + [
        Pool(site_pool(site), WORKER_TYPE, f"Sessions of site {site}, on its own machine.", 1)
        for site in sites
    ]


def deployments(sites: Iterable[str]) -> list[Deployment]:
    """List the deployments of a federation with these enrolled sites."""
    own = [
        Deployment(
            RUN_CAMPAIGN,
            RUN_CAMPAIGN,
            COORDINATOR_POOL,
            source="flows.run_campaign.run_campaign",
            entrypoint="flows.run_campaign.run_campaign",
            description="Start a campaign from the text of a campaign file, or resume one by id.",
        ),
        Deployment(
            EVALUATE_RELEASE,
            EVALUATE_RELEASE,
            EVALUATION_POOL,
            source="flows.evaluate_release.evaluate_release",
            description="Evaluate one release on the public holdout; started by its round.",
        ),
        Deployment(
            LOCK_CAMPAIGN,
            LOCK_CAMPAIGN,
            EVALUATION_POOL,
            source="flows.lock_campaign.lock_campaign",
            description="Resolve a campaign's names to hashes; started by its campaign run.",
        ),
    ]
    return own + [
        Deployment(
            SITE_SESSION,
            site,
            site_pool(site),
            source="flows.site_session.site_session",
            description=f"Session of site {site}; started by a campaign run.",
            tags=(f"site:{site}",),
        )
        for site in sites
    ]


@contextlib.contextmanager
def api() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect API, with one error for everything that keeps it from answering.

    Raises:
        ServerFailed: No address, no answer, a refusal, or an object that does not exist.
    """
    if not PREFECT_API_URL.value():
        # Prefect's client would start a server of its own, which knows nothing.
        raise ServerFailed(
            "PREFECT_API_URL is not set, expected the address of the coordinator's prefect api; "
            "set it"
        )
    with get_client(sync_client=True) as client:
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise ServerFailed(
                f"prefect answered {error.response.status_code} at {error.request.url.path}, "
                "expected success; look into the server's log"
            ) from error
        except httpx.HTTPError as error:
            raise ServerFailed(
                f"no prefect server answers at {client.api_url} ({type(error).__name__}); "
                "start it, or set PREFECT_API_URL"
            ) from error
        except ObjectNotFound as error:
            raise ServerFailed(
                "prefect does not know the deployment or run asked for, expected it to be "
                "registered; enrol the site, or start the stack again"
            ) from error


def register(*, sites: Sequence[str], coordinator: Pool | None = None) -> None:
    """Make pools and deployments at the Prefect server, or bring them up to date.

    Schedules that a person gave to a deployment stay, and the coordinator's pool as it is, except
    for a template that is stated here.

    Args:
        sites: Names of all enrolled sites.
        coordinator: The pool of campaigns; None: processes, without a limit at first.

    Raises:
        CampaignError: The coordinator's pool is there under another type.
        ServerFailed: The API does not answer.
    """
    with api() as client:
        for pool in pools(sites, coordinator=coordinator):
            _make_pool(client, pool)
        for deployment in deployments(sites):
            _make_deployment(client, deployment)


def limit_campaigns(client: SyncPrefectClient, n: int) -> None:
    """Let so many campaign runs take place at one time; further ones wait in the pool."""
    client.update_work_pool(COORDINATOR_POOL, WorkPoolUpdate(concurrency_limit=n))


def _make_pool(client: SyncPrefectClient, pool: Pool) -> None:
    if pool.type == WORKER_TYPE:
        client.create_work_pool(_work_pool(pool, _no_choices()), overwrite=True)
        return
    from prefect.workers.process import ProcessWorker

    template = pool.template or ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(_work_pool(pool, template))
    except ObjectAlreadyExists:
        # A person may have changed the template of a stock pool; that is theirs.
        if pool.template is not None:
            _restate(client, pool)


def _restate(client: SyncPrefectClient, pool: Pool) -> None:
    found = client.read_work_pool(pool.name)
    if found.type != pool.type:
        raise CampaignError(
            f"work pool {pool.name!r} is of type {found.type}, expected {pool.type}; let campaigns "
            f"end, `prefect work-pool delete {pool.name}`, then register again, with the limit of "
            "campaigns that it had"
        )
    client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=dict(pool.template or {})))


def _work_pool(pool: Pool, template: Mapping[str, Any]) -> WorkPoolCreate:
    return WorkPoolCreate(
        name=pool.name,
        type=pool.type,
        description=pool.description,
        concurrency_limit=pool.concurrency_limit,
        base_job_template=dict(template),
    )


def _no_choices() -> dict[str, Any]:
    # The server then refuses every job variable; the worker ignores them in any case.
    variables = {"type": "object", "properties": {}, "additionalProperties": False}
    # The server wants a configuration that is not empty, although nobody reads it.
    return {"job_configuration": {"env": {}}, "variables": variables}


def _make_deployment(client: SyncPrefectClient, deployment: Deployment) -> None:
    stated: dict[str, Any] = {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "tags": list(deployment.tags),
        # Without a schema the start form in the UI is empty.
        "parameter_openapi_schema": _parameters(deployment).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "work_pool_name": deployment.pool,
    }
    try:
        found = client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        flow_id = client.create_flow_from_name(deployment.flow_name)
        client.create_deployment(flow_id, deployment.name, **stated)
    else:
        # Creating it again would drop the schedules that people gave it.
        stated |= {"path": None, "pull_steps": [], "job_variables": {}}
        client.update_deployment(found.id, DeploymentUpdate(**stated))


def _parameters(deployment: Deployment) -> ParameterSchema:
    if deployment.entrypoint is None:
        return parameter_schema_from_entrypoint(deployment.source)
    # Limits and help texts of the start form are only in the flow itself.
    return parameter_schema(import_object(deployment.entrypoint))
