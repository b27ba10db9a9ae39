"""What one request brings and gets: counted for the record, and ended in order.

A refusal is given before the body is read. A client that is still sending would then lose the
answer with the connection, so a short rest of a body is read and dropped first; after a long one
the connection is closed.
"""

import asyncio

from starlette.requests import Request
from starlette.types import Message, Send

from flows.gateway.limits import Limits
from flows.gateway.record import Line

_REFUSED = 400


class Traffic:
    """The two ways of one request.

    Args:
        line: Its line in the record.
        request: The request as the server gave it.
        send: The way back.
        limits: What is dropped, and how long that may take.
    """

    def __init__(self, line: Line, request: Request, send: Send, limits: Limits) -> None:
        self._line = line
        self._request = request
        self._receive = request.receive
        self._send = send
        self._limits = limits
        headers = request.headers
        self._rest = _length(headers.get("content-length"))
        self._is_over = self._rest == 0 and "transfer-encoding" not in headers
        # Whoever waits to be told to go on has sent nothing yet.
        self._is_droppable = "expect" not in headers and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Return the next part of the body."""
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._line.received += size
            self._rest -= size
            self._is_over = not message.get("more_body", False)
        else:
            self._is_over = True
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self._line.status = message["status"]
            if message["status"] >= _REFUSED and not await self._drop_rest():
                headers = [*message.get("headers", []), (b"connection", b"close")]
                message = {**message, "headers": headers}
        self._line.sent += len(message.get("body", b""))
        await self._send(message)

    async def _drop_rest(self) -> bool:
        if self._is_over:
            return True
        if not self._is_droppable or self._rest > self._limits.drained_bytes:
            return False
        try:
            async with asyncio.timeout(self._limits.body_s):
                while not self._is_over:
                    await self.receive()
        except TimeoutError:
            return False
        return True


def _length(stated: str | None) -> int:
    try:
        return int(stated or 0)
    except ValueError:
        return 0
