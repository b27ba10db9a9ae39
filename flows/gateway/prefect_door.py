"""Prefect, as far as a site may see it: its own pool, its own runs, and nothing of the rest.

Prefect's open-source API knows one password and no roles, so whoever reaches it may read every run
and change it. Here a short list of paths is passed on, each after a question to Prefect whether
the pool or run is the site's own; ids that do not exist are answered like those of others. There
are no WebSockets: events come as a list, each of them checked. Cancelling arrives because the
worker reads the state of the run that it has in hand.
"""

import asyncio
import base64
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows.gateway import prefect_words as words
from flows.gateway.bodies import Bodies
from flows.gateway.limits import MAX_API_BYTES, Buckets
from flows.prefect_names import SITE_SESSION, site_pool

_TIMEOUT_S = 30.0
_FOUND, _MISSING = 200, 404
_KEPT = 10_000
_FREE = ("/health", "/ready", "/admin/version")
_VERSION = "x-prefect-api-version"

log = logging.getLogger(__name__)

Complaints = Callable[[str], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class PrefectAccess:
    """The Prefect API behind the gateway.

    Attributes:
        url: Its address, ending in ``/api``; None where there is none.
        auth: ``user:password``, or None where it asks for none.
    """

    url: str | None
    auth: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PrefectCounts:
    """What each site may have Prefect write down, which nothing removes again.

    Attributes:
        states: States of its runs.
        events: Events of its runs.
    """

    states: Buckets
    events: Buckets


class PrefectDoor:
    """Answers the requests below ``/api``.

    Args:
        access: The API.
        bodies: Reads bodies.
        complaints: What does not fit about a site; while there is something, it gets no session.
        counts: What each site may have written.
    """

    def __init__(
        self,
        access: PrefectAccess,
        *,
        bodies: Bodies,
        complaints: Complaints,
        counts: "PrefectCounts",
    ) -> None:
        self._counts = counts
        self._access = access
        self._bodies = bodies
        self._complaints = complaints
        self._pools: OrderedDict[UUID, str] = OrderedDict()
        self._flow_runs: OrderedDict[UUID, UUID | None] = OrderedDict()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Open the client."""
        headers = {}
        if self._access.auth is not None:
            secret = base64.b64encode(self._access.auth.encode()).decode()
            headers["Authorization"] = f"Basic {secret}"
        if self._access.url is not None:
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
            self._client = httpx.AsyncClient(
                base_url=self._access.url,
                headers=headers,
                timeout=_TIMEOUT_S,
                limits=limits,
                # The API is beside the gateway; a proxy of the environment is for other ways.
                trust_env=False,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.aclose()

    def routes(self) -> list[Route]:
        """Return every path that is passed on."""
        run, pool = "/api/flow_runs/{id:uuid}", "/api/work_pools/{pool}"
        return [
            *(Route(f"/api{path}", self._free, methods=["GET"]) for path in _FREE),
            Route(pool, self._pool, methods=["GET"]),
            Route(f"{pool}/get_scheduled_flow_runs", self._poll, methods=["POST"]),
            Route(f"{pool}/workers/heartbeat", self._heartbeat, methods=["POST"]),
            Route(run, self._run, methods=["GET"]),
            Route(run, self._patch, methods=["PATCH"]),
            Route(f"{run}/labels", self._labels, methods=["PATCH"]),
            Route(f"{run}/set_state", self._set_state, methods=["POST"]),
            Route("/api/flows/{id:uuid}", self._flow, methods=["GET"]),
            Route("/api/deployments/{id:uuid}", self._deployment, methods=["GET"]),
            Route("/api/events", self._events, methods=["POST"]),
        ]

    async def _free(self, request: Request) -> Response:
        return _passed(await self._ask(request, request.url.path.removeprefix("/api")))

    async def _pool(self, request: Request) -> Response:
        return _passed(await self._ask(request, f"/work_pools/{_own_pool(request)}"))

    async def _poll(self, request: Request) -> Response:
        pool = _own_pool(request)
        complaints = await self._complaints(request.state.site)
        if complaints:
            request.state.line.detail = complaints[0]
            plain = {"detail": complaints[0], "complaints": list(complaints)}
            return JSONResponse(plain, 409)
        body = words.clean_poll(await self._body(request))
        path = f"/work_pools/{pool}/get_scheduled_flow_runs"
        return _passed(await self._ask(request, path, body))

    async def _heartbeat(self, request: Request) -> Response:
        pool = _own_pool(request)
        body = words.clean_heartbeat(await self._body(request), site=request.state.site)
        return _passed(await self._ask(request, f"/work_pools/{pool}/workers/heartbeat", body))

    async def _run(self, request: Request) -> Response:
        await self._require_own_run(request, request.path_params["id"])
        return _passed(await self._ask(request, f"/flow_runs/{request.path_params['id']}"))

    async def _patch(self, request: Request) -> Response:
        await self._require_own_run(request, request.path_params["id"])
        body = words.clean_patch(await self._body(request))
        if not body:
            return Response(status_code=204)
        return _passed(await self._ask(request, f"/flow_runs/{request.path_params['id']}", body))

    async def _labels(self, request: Request) -> Response:
        await self._require_own_run(request, request.path_params["id"])
        await self._body(request)
        # Prefect's client sets them at every run; nothing of ours reads a site's labels.
        return Response(status_code=204)

    async def _set_state(self, request: Request) -> Response:
        await self._require_own_run(request, request.path_params["id"])
        self._counts.states.require(request.state.site, "states of runs")
        body = words.clean_state(await self._body(request))
        path = f"/flow_runs/{request.path_params['id']}/set_state"
        return _passed(await self._ask(request, path, body))

    async def _flow(self, request: Request) -> Response:
        answer = await self._ask(request, f"/flows/{request.path_params['id']}")
        if answer.status_code != _FOUND or answer.json().get("name") != SITE_SESSION:
            raise _not_yours()
        return _passed(answer)

    async def _deployment(self, request: Request) -> Response:
        answer = await self._ask(request, f"/deployments/{request.path_params['id']}")
        own = site_pool(request.state.site)
        if answer.status_code != _FOUND or answer.json().get("work_pool_name") != own:
            raise _not_yours()
        return _passed(answer)

    async def _events(self, request: Request) -> Response:
        events = words.clean_events(await self._body(request))
        self._counts.events.require(request.state.site, "events")
        self._counts.events.spend(request.state.site, len(events))
        for flow_run in {event.flow_run for event in events}:
            await self._require_own_run(request, flow_run)
        for event in events:
            await self._require_own_task(event)
        if events:
            await self._ask(request, "/events", [event.plain for event in events])
        return Response(status_code=204)

    async def _require_own_run(self, request: Request, run: UUID) -> None:
        if run not in self._pools:
            answer = await self._ask_for("GET", f"/flow_runs/{run}")
            if answer.status_code == _FOUND:
                _keep(self._pools, run, str(answer.json().get("work_pool_name")))
        if self._pools.get(run) != site_pool(request.state.site):
            raise _not_yours()

    async def _require_own_task(self, event: words.CleanEvent) -> None:
        """Check that a task run is new, or belongs to the flow run that the event names."""
        if event.task_run is None:
            return
        if event.task_run not in self._flow_runs:
            answer = await self._ask_for("GET", f"/task_runs/{event.task_run}")
            if answer.status_code not in {_FOUND, _MISSING}:
                raise _away()
            # A task run without a flow run is nobody's here.
            known = answer.json().get("flow_run_id") if answer.status_code == _FOUND else None
            owner = event.flow_run if answer.status_code == _MISSING else known and UUID(known)
            _keep(self._flow_runs, event.task_run, owner)
        if self._flow_runs[event.task_run] != event.flow_run:
            raise _not_yours()

    async def _body(self, request: Request) -> bytes:
        async with self._bodies.read(request, max_bytes=MAX_API_BYTES) as body:
            return body

    async def _ask(self, request: Request, path: str, body: Any = None) -> httpx.Response:
        headers = {n: v for n, v in request.headers.items() if n == _VERSION}
        return await self._ask_for(request.method, path, body=body, headers=headers)

    async def _ask_for(
        self, method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        if self._client is None:
            raise _away()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._client.request(method, path, json=body, headers=headers)
        except (httpx.HTTPError, TimeoutError) as error:
            log.warning("prefect does not answer path=%s error=%s", path, type(error).__name__)
            raise _away() from error


def _away() -> HTTPException:
    return HTTPException(503, "prefect does not answer; try again", {"Retry-After": "2"})


def _own_pool(request: Request) -> str:
    own = site_pool(request.state.site)
    if request.path_params["pool"] != own:
        raise _not_yours()
    return own


def _not_yours() -> HTTPException:
    return HTTPException(403, "this is not for this site")


def _passed(answer: httpx.Response) -> Response:
    kind = answer.headers.get("content-type")
    return Response(answer.content, answer.status_code, media_type=kind)


def _keep(known: OrderedDict[UUID, Any], name: UUID, value: Any) -> None:
    known[name] = value
    if len(known) > _KEPT:
        known.popitem(last=False)
