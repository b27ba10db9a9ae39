"""Bodies of requests: their length is judged before a byte is read, their hash before one counts.

A body is held in memory once, inside a bound over all requests, and has to arrive at some speed:
whoever announces much and sends little keeps neither memory nor a connection for long.
"""

import asyncio
import contextlib
import hashlib
import io
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from flows.gateway.limits import Limits, Room
from tasks.request_token import BODY_SHA256

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 256 << 10

log = logging.getLogger(__name__)


def announced(request: Request, *, max_bytes: int) -> int:
    """Return how long a body is going to be; nothing of it is read.

    Raises:
        HTTPException: 411, it does not say; 413, longer than ``max_bytes``; 422, no hash.
    """
    text = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not re.fullmatch(r"[0-9]{1,15}", text):
        raise HTTPException(411, "the request states no length, expected Content-Length")
    length = int(text)
    if length > max_bytes:
        raise HTTPException(413, f"{length} bytes are announced, at most {max_bytes} are taken")
    if not _SHA256.fullmatch(request.headers.get(BODY_SHA256, "")):
        raise HTTPException(422, f"the request has no header {BODY_SHA256} with 64 hex digits")
    return length


class Bodies:
    """Read bodies, all of them inside one bound of memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.room = Room(limits.body_bytes, patience_s=limits.body_wait_s)

    @contextlib.asynccontextmanager
    async def read(self, request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Read a body whose length and hash were announced, and hold its memory.

        Raises:
            HTTPException: 408, too slow; 411, 413, 422 as ``announced``; 422, other bytes than its
                hash says; 503, no room in memory.
        """
        length = announced(request, max_bytes=max_bytes)
        async with self.room.hold(length, site=request.state.site):
            yield await self._whole(request, length)

    async def _whole(self, request: Request, length: int) -> bytes:
        digest, kept = hashlib.sha256(), io.BytesIO()
        seconds = self.limits.body_seconds(length)
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    digest.update(chunk)
                    kept.write(chunk)
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not arrive in {seconds:.0f} s", {"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before the body did") from None
        stated = request.headers[BODY_SHA256]
        if digest.hexdigest() != stated:
            raise HTTPException(422, f"the body has another sha-256 than {stated[:16]}...")
        # Gives away the buffer itself, so there is no second copy.
        return kept.getvalue()


class ObjectAnswer:
    """An object as the answer, sent in pieces to whoever takes them at some speed.

    Args:
        read: Reads the object and its hash, once there is room for it.
        n_bytes: How long it is.
        site: Whose share of the room it takes until it is sent.
        bodies: The room, and how slow is too slow.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[tuple[bytes, str]]],
        *,
        n_bytes: int,
        site: str,
        bodies: Bodies,
    ) -> None:
        self._read = read
        self._n_bytes = n_bytes
        self._site = site
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send status, headers and the pieces.

        Raises:
            HTTPException: 503, no room in memory; nothing was sent yet.
        """
        del scope, receive
        async with self._bodies.room.hold(self._n_bytes, site=self._site):
            data, sha256 = await self._read()
            try:
                async with asyncio.timeout(self._bodies.limits.body_seconds(len(data))):
                    await _send_pieces(data, sha256, send)
            except TimeoutError:
                # The server closes a connection whose answer was not ended.
                log.warning("object taken too slowly site=%s n_bytes=%d", self._site, len(data))


async def _send_pieces(data: bytes, sha256: str, send: Send) -> None:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(data)).encode()),
        (BODY_SHA256.encode(), sha256.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(data), _CHUNK):
        piece = data[start : start + _CHUNK]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
