"""The gateway as one application: who asks, how often, may they, and a line about it.

Every request goes through ``Doorkeeper``, which knows the site, holds it to its limits and writes
the record, whatever the answer. The routes behind it are few and written out; what is not among
them is refused.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fl_core.artifacts.store import SizedStore
from fl_core.errors import StoreError
from flows.gateway.bodies import Bodies
from flows.gateway.copies import Copies
from flows.gateway.hello_door import HelloDoor
from flows.gateway.identity import Identifier
from flows.gateway.limits import AtOnce, Buckets, Limits
from flows.gateway.members import FRESH_S, Members, RosterWatch
from flows.gateway.open_rounds import OpenRounds
from flows.gateway.prefect_door import PrefectAccess, PrefectCounts, PrefectDoor
from flows.gateway.record import Line, Record
from flows.gateway.store_door import StoreDoor, StoreParts
from flows.gateway.traffic import Traffic
from flows.gateway.waiting import Watcher

# A site that was enrolled a moment ago fails its first handshake at most.
_ROSTER_S = 0.5
_AGAIN_S = 1.0
_FIRST_LOOK_S = 2.0
_UNKNOWN, _TOO_MANY = 401, 429
_HELD_S = 0.5
_QUERIES = ("key", "prefix")
_LISTINGS = ("/store/keys", "/store/wait")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What one gateway is made of.

    Attributes:
        store: The campaigns' store.
        prefect: Prefect's API behind the gateway.
        identifier: Tells sites from requests.
        roster: Who is enrolled.
        record: Where every request is noted.
        version: Of fedloom, as ``/health`` says it.
        limits: What is granted.
    """

    store: SizedStore
    prefect: PrefectAccess
    identifier: Identifier
    roster: RosterWatch
    record: Record
    version: str
    limits: Limits


def make_app(gateway: Gateway) -> Starlette:
    """Return the application of a gateway."""
    limits, bodies, watcher = gateway.limits, Bodies(gateway.limits), Watcher(gateway.store)
    store_door = _store_door(gateway, bodies, watcher)
    hellos = HelloDoor(gateway.store, bodies, Buckets(limits.hellos))
    counts = PrefectCounts(Buckets(limits.states), Buckets(limits.events))
    prefect = PrefectDoor(
        gateway.prefect, bodies=bodies, complaints=hellos.complaints, counts=counts
    )

    async def health(request: Request) -> JSONResponse:
        del request
        return JSONResponse({"fedloom": gateway.version})

    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/hello", hellos.hear, methods=["POST"]),
        Route("/store/objects/{key:path}", store_door.get, methods=["GET"]),
        Route("/store/objects/{key:path}", store_door.put, methods=["PUT"]),
        Route("/store/keys", store_door.keys, methods=["GET"]),
        Route("/store/wait", store_door.wait, methods=["GET"]),
        *prefect.routes(),
        # No hint at what there is, and no difference between a path and a method.
        Route("/{path:path}", _nothing_here, methods=list(_METHODS)),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        work = (
            watcher.run,
            lambda: gateway.roster.follow(_ROSTER_S),
            lambda: _flushing(gateway.record),
        )
        async with prefect, _running(work):
            # Sites that knock at a gateway that was just started again are known at once, if the
            # store is there; if it is not, the gateway starts all the same.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_FIRST_LOOK_S):
                    await gateway.roster.fresh(max_age_s=_FIRST_LOOK_S)
            yield
        # uvicorn ends the process by the signal that it got, and nothing after this is run.
        gateway.record.settle()

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Doorkeeper, gateway=gateway)],
        exception_handlers={HTTPException: _refusal},
    )


def _store_door(gateway: Gateway, bodies: Bodies, watcher: Watcher) -> StoreDoor:
    limits = gateway.limits
    return StoreDoor(
        StoreParts(
            store=gateway.store,
            rounds=OpenRounds(gateway.store),
            watcher=watcher,
            bodies=bodies,
            sound=Copies(gateway.store, lambda: gateway.roster.members.roster),
            copies=Buckets(limits.copies),
            copy_bytes=Buckets(limits.copy_bytes),
            wide=Buckets(limits.listings),
            listed=Buckets(limits.listed),
            waits=AtOnce(limits.waits),
        )
    )


class Doorkeeper:
    """Identify, limit, record; then let the request in."""

    def __init__(self, app: ASGIApp, *, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._requests = Buckets(gateway.limits.requests)
        self._strangers = Buckets(gateway.limits.strangers)
        self._at_once = AtOnce(gateway.limits.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        line = Line(
            method=request.method,
            path=request.url.path,
            address=request.client.host if request.client else "",
        )
        began = time.monotonic()
        scope["state"]["line"] = line
        traffic = Traffic(line, request, send, self._gateway.limits)
        try:
            await self._let_in(Request(scope, traffic.receive), line, traffic)
        finally:
            line.ms = 1000 * (time.monotonic() - began)
            self._gateway.record.write(line)

    async def _let_in(self, request: Request, line: Line, traffic: Traffic) -> None:
        try:
            if line.path == "/health":
                self._strangers.require(line.address, "requests of this address")
                await self._app(request.scope, traffic.receive, traffic.send)
                return
            site = await self._identified(request, line)
            self._requests.require(site, "requests of this site")
            with self._at_once.one(site):
                await self._app(request.scope, traffic.receive, traffic.send)
        except HTTPException as refused:
            if refused.status_code == _TOO_MANY:
                # Whoever does not wait by itself is made to, or refusing would be all there is.
                await asyncio.sleep(_HELD_S)
            answer = await _refusal(request, refused)
            await answer(request.scope, traffic.receive, traffic.send)

    async def _identified(self, request: Request, line: Line) -> str:
        identify = self._gateway.identifier.identify
        try:
            visitor = identify(request, await self._members(is_write=request.method == "PUT"))
        except HTTPException as refused:
            self._strangers.require(line.address, "refused requests of this address")
            if refused.status_code != _UNKNOWN or "authorization" not in request.headers:
                raise
            # Whoever was enrolled this very moment is in the newest roster only; a certificate
            # that is not in one that was read does not get this far.
            visitor = identify(request, await self._members(is_write=True))
        request.state.site = line.site = visitor.site
        line.by = visitor.by
        if line.path in _LISTINGS:
            # A stranger's query is a stranger's text, and no question to the store.
            asked = request.query_params
            line.keys = [value for name in _QUERIES for value in asked.getlist(name)]
        return visitor.site

    async def _members(self, *, is_write: bool) -> Members:
        try:
            return await self._gateway.roster.fresh(max_age_s=0 if is_write else FRESH_S)
        except StoreError as error:
            log.warning("roster cannot be read error=%s", error)
            raise HTTPException(
                503, "the store does not answer; try again", {"Retry-After": "2"}
            ) from error


async def _nothing_here(request: Request) -> None:
    del request
    raise HTTPException(403, "this is not a request that sites make")


async def _refusal(request: Request, refused: Exception) -> JSONResponse:
    if not isinstance(refused, HTTPException):
        raise refused
    detail = " ".join(str(refused.detail).split())
    request.state.line.detail = detail
    return JSONResponse({"detail": detail}, refused.status_code, refused.headers)


async def _flushing(record: Record) -> None:
    while True:
        await asyncio.sleep(1)
        record.flush()


@contextlib.asynccontextmanager
async def _running(work: Iterable[Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(_for_ever(each)) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # the edge of the process: a gateway without its watcher would be deaf
            log.exception("work in the background failed, and begins again")
            await asyncio.sleep(_AGAIN_S)
