"""The site's own way out for Prefect's client: a listener on loopback, before the gateway.

Prefect's client can show no client certificate and sign no request, sends log lines and texts
where it is not stopped, and opens WebSockets. So at a site it speaks to this listener only, in the
worker's own process, behind a path that nobody can guess. What ``flows.egress_rules`` lets pass
goes on to the gateway with the site's identity; all else is answered here, and is in the record as
kept. Events come in by Prefect's WebSocket and leave as plain requests, a few together.

It runs in a thread with a loop of its own, so a worker that is busy cannot hold up a session's
calls, and it is gone with the worker.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import threading
import time
from collections import deque
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from fl_core.errors import FedloomError, ServerFailed, StoreUnavailable
from flows.egress_peers import LocalProtocol
from flows.egress_rules import Passes, Stays, judge, outward_event
from tasks.gateway_access import SiteDoor
from tasks.gateway_client import MAX_ANSWER_BYTES, detail_of, no_answer, refusal
from tasks.gateway_identity import HEADERS, Identity, identity_stamp, read_identity
from tasks.outgoing import OutgoingLog

START_S = 10.0
FLUSH_S = 2.0
_MAX_BODY_BYTES = 1 << 20
# Events are for people who watch; when the gateway is away for long, the newest are kept.
_MAX_EVENTS = 2000
_EVENTS_AT_ONCE = 100
_GATHER_S = 0.25
_RETRY_S = 5.0
_SAY_AGAIN_S = 60.0
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)

log = logging.getLogger(__name__)


class Egress:
    """A context in which Prefect's client can reach the gateway at ``url``.

    Args:
        door: The site and its gateway.
        pool: The site's own work pool.
        record: Where every request is noted, also those that are kept.
    """

    def __init__(self, door: SiteDoor, *, pool: str, record: OutgoingLog) -> None:
        self.run_in_hand = ""
        self._way = _Way(door, record)
        self._pool, self._record = pool, record
        self._secret = secrets.token_urlsafe(24)
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._have_events = asyncio.Event()
        self._kept_at: dict[tuple[str, str, str], float] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(_config(self._app()))
        self._thread = threading.Thread(target=self._serve, name="egress", daemon=True)

    @property
    def url(self) -> str:
        """The API's address for Prefect's client; whoever knows it speaks for this site."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/{self._secret}/api"

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ServerFailed: It does not start.
        """
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ServerFailed(
                    "the site's way out does not start, expected a listener on 127.0.0.1; see the "
                    "lines above in this log"
                )
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop listening; events that wait are sent for two seconds at most."""
        self._server.should_exit = True
        self._thread.join(START_S)

    def _serve(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        sending = asyncio.create_task(self._send_events())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError, StoreUnavailable):
                await asyncio.wait_for(self._flush(), FLUSH_S)
            await self._way.close()

    def _app(self) -> Starlette:
        prefix = f"/{self._secret}/api"
        verbs = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        return Starlette(
            routes=[
                WebSocketRoute(f"{prefix}/events/in", self._take_events),
                Route(f"{prefix}{{path:path}}", self._answer, methods=verbs),
            ]
        )

    async def _answer(self, request: Request) -> Response:
        # No call on the list has a query, so none leaves.
        path, body = str(request.path_params["path"]), await _body(request)
        if body is None:
            verdict: Passes | Stays = Stays(413, "too long", "kept at the site: too long")
        else:
            verdict = judge(request.method, path, body, pool=self._pool)
        if isinstance(verdict, Stays):
            self._keep(request.method, f"/api{path}", verdict.reason)
            return _told(verdict)
        try:
            found = await self._way.send(request.method, f"/api{path}", verdict.body)
        except StoreUnavailable as error:
            return JSONResponse({"detail": str(error)}, 503, headers={"retry-after": "1"})
        kind = found.headers.get("content-type")
        return Response(found.content, found.status_code, media_type=kind)

    async def _take_events(self, websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="prefect")
        with contextlib.suppress(WebSocketDisconnect):
            # The handshake of Prefect's client; the path was its secret.
            await websocket.receive_text()
            await websocket.send_json({"type": "auth_success"})
            while True:
                self._take(await websocket.receive_text())

    def _take(self, text: str) -> None:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        built = outward_event(event, run_id=self.run_in_hand)
        if built is not None:
            self._events.append(built)
            self._have_events.set()
            return
        name = event.get("event") if isinstance(event, dict) else None
        shown = "".join(c for c in str(name)[:80] if c.isprintable())
        self._keep("EVENT", shown, "not a step or heartbeat of the run in hand")

    def _keep(self, method: str, path: str, reason: str) -> None:
        # Prefect's client asks some things every few seconds; a line a minute says the same.
        asked, now = (method, path, reason), time.monotonic()
        if not reason or now - self._kept_at.get(asked, -_SAY_AGAIN_S) < _SAY_AGAIN_S:
            return
        if len(self._kept_at) >= _MAX_EVENTS:
            self._kept_at.clear()
        self._kept_at[asked] = now
        try:
            self._record.kept(method, path, reason=reason)
        except StoreUnavailable as error:
            # It stays either way; only what leaves may not lack its line.
            log.warning("%s; %s", error, error.hint)

    async def _send_events(self) -> None:
        while True:
            await self._have_events.wait()
            await asyncio.sleep(_GATHER_S)
            self._have_events.clear()
            try:
                await self._flush()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._have_events.set()

    async def _flush(self) -> None:
        while self._events:
            batch = [self._events[i] for i in range(min(len(self._events), _EVENTS_AT_ONCE))]
            body = json.dumps(batch, separators=(",", ":")).encode()
            answer = await self._way.send("POST", "/api/events", body)
            if answer.status_code in _BUSY:
                raise StoreUnavailable("the gateway takes no events now; they are sent later")
            if answer.is_error:
                log.warning("events refused status=%d n_events=%d", answer.status_code, len(batch))
            sent = {id(event) for event in batch}
            while self._events and id(self._events[0]) in sent:
                self._events.popleft()


_BUSY = (429, 502, 503, 504)
# Prefect's client says a number; the operator needs the words.
_REFUSALS = (401, 403, 409)


class _Way:
    """Requests to the gateway with the site's identity, from the listener's own loop."""

    def __init__(self, door: SiteDoor, record: OutgoingLog) -> None:
        self._door, self._record = door, record
        self._open: tuple[Identity, httpx.AsyncClient] | None = None
        self._said: tuple[str, float] = ("", 0.0)

    async def send(self, method: str, target: str, body: bytes) -> httpx.Response:
        """Send one request, once: Prefect's client repeats what it wants.

        Raises:
            StoreUnavailable: No answer, or the record cannot be written; also in the site's log.
        """
        try:
            return await self._once(method, target, body)
        except httpx.HTTPError as error:
            unanswered = no_answer(self._door, error)
            self._say(unanswered)
            raise unanswered from error
        except FedloomError as error:
            self._say(error)
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable(str(error), hint=error.hint) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._open is not None:
            await self._open[1].aclose()

    async def _once(self, method: str, target: str, body: bytes) -> httpx.Response:
        identity, client = self._client()
        request = client.build_request(method, target, content=body)
        sent_path = request.url.raw_path.decode("ascii")
        request.headers.update(identity.headers(method, sent_path, body))
        if body:
            request.headers["content-type"] = "application/json"
        name = self._record.sends(method, sent_path, body)
        status: int | None = None
        try:
            response = await client.send(request, stream=True)
            try:
                status = response.status_code
                content = await _bounded(response)
            finally:
                await response.aclose()
        finally:
            self._record.answered(name, status)
        answer = httpx.Response(status, headers=_kind(response), content=content)
        if status in _REFUSALS:
            self._say(refusal(self._door, status, detail_of(answer), what=f"answer {target}"))
        return answer

    def _client(self) -> tuple[Identity, httpx.AsyncClient]:
        stamp = identity_stamp(self._door)
        if self._open is None or self._open[0].stamp != stamp:
            # Calls under way end on the old connections, which go with the last of them.
            identity = read_identity(self._door)
            client = httpx.AsyncClient(
                base_url=self._door.access.url,
                verify=identity.verify,
                trust_env=not identity.is_local,
                timeout=_TIMEOUT,
                headers=HEADERS,
            )
            self._open = (identity, client)
        return self._open

    def _say(self, error: FedloomError) -> None:
        # The worker asks twice a second; its log says once a minute why it gets no answer.
        text, now = str(error), time.monotonic()
        if text != self._said[0] or now - self._said[1] > _SAY_AGAIN_S:
            self._said = (text, now)
            log.warning("%s; %s", text, error.hint)


def _told(verdict: Stays) -> Response:
    if verdict.status == HTTPStatus.NO_CONTENT:
        return Response(status_code=verdict.status)
    return JSONResponse({"detail": verdict.detail}, verdict.status)


async def _bounded(response: httpx.Response) -> bytes:
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise StoreUnavailable("the gateway sends more than any answer of prefect's is long")
    return content


def _kind(response: httpx.Response) -> dict[str, str]:
    kind = response.headers.get("content-type")
    return {} if kind is None else {"content-type": kind}


async def _body(request: Request) -> bytes | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            return None
    return body


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        http=LocalProtocol,
        ws="websockets-sansio",
        ws_max_size=_MAX_BODY_BYTES,
        timeout_graceful_shutdown=1,
    )
