"""The handshake at the gateway: no session for a site whose versions do not fit.

A site says hello when its worker starts. What it said last is in the store, so a gateway that was
started again asks nobody to say it twice. The complaints are worked out anew each time, because the
coordinator's own version may be another one by now.
"""

import asyncio
from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import ObjectCorrupt, StoreError
from flows.gateway.bodies import Bodies
from flows.gateway.limits import Buckets
from tasks.hello import CHECK, Hello, welcome
from tasks.said_hellos import MAX_HELLO_BYTES, keep_hello, latest_hello

_SILENT = "the site has not said hello yet; start its worker again"


class HelloDoor:
    """Hears hellos and remembers the last one of each site.

    Args:
        store: Where they are kept.
        bodies: Reads bodies.
        counts: How many documents each site may have written for it.
    """

    def __init__(self, store: ObjectStore, bodies: Bodies, counts: Buckets) -> None:
        self._store = store
        self._bodies = bodies
        self._counts = counts
        self._last: dict[str, Hello] = {}

    async def hear(self, request: Request) -> Response:
        """Answer a hello with the complaints about it: 200 with none, 409 with some.

        With ``?check=1`` what the site said before stands: its doctor asks, not its worker.
        """
        async with self._bodies.read(request, max_bytes=MAX_HELLO_BYTES // 2) as body:
            try:
                hello = from_bytes(Hello, body, what="the hello")
            except ObjectCorrupt as error:
                raise HTTPException(422, str(error)) from None
        if hello.site != request.state.site:
            raise HTTPException(403, "the hello is of another site")
        if CHECK not in request.query_params:
            await self._take(hello)
        said = welcome(hello)
        status = 409 if said.complaints else 200
        return Response(to_bytes(said), status, media_type="application/json")

    async def complaints(self, site: str) -> tuple[str, ...]:
        """Return what does not fit about a site; empty means that it may have a session."""
        if site not in self._last:
            try:
                said = await asyncio.to_thread(latest_hello, self._store, site)
            except StoreError as error:
                raise HTTPException(503, "the store does not answer; try again") from error
            if said is None:
                return (_SILENT,)
            self._last[site] = said.hello
        return welcome(self._last[site]).complaints

    async def _take(self, hello: Hello) -> None:
        if self._last.get(hello.site) != hello:
            self._counts.require(hello.site, "hellos")
            await self._keep(hello)
        self._last[hello.site] = hello

    async def _keep(self, hello: Hello) -> None:
        now = datetime.now(UTC)
        try:
            await asyncio.to_thread(lambda: keep_hello(self._store, hello, now=now))
        except StoreError as error:
            raise HTTPException(503, "the store does not answer; try again") from error
