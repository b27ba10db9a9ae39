"""The store, as far as a site may see it: get, put once, list, wait. There is no delete.

Whole keys decide (``fl_core.artifacts.site_keys``), and of a campaign only those sites see anything
that it names. So a site learns nothing of another one: not what it wrote, not whether, not its name
in a listing; what is somebody else's and what does not exist are answered alike. A write is judged
before its body is read: the key, the length, the round.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fl_core.artifacts.documents import sha256_hex
from fl_core.artifacts.site_keys import Kind, is_readable, round_of_update, writable_kind
from fl_core.artifacts.store import SizedStore, exists, require_key, require_prefix
from fl_core.errors import ObjectCorrupt, ObjectMissing, RoundClosed, StoreError
from flows.gateway.bodies import Bodies, ObjectAnswer, announced
from flows.gateway.copies import Copies
from flows.gateway.kept import Kept
from flows.gateway.limits import MAX_DOCUMENT_BYTES, AtOnce, Buckets
from flows.gateway.open_rounds import OpenRounds
from flows.gateway.waiting import Watcher

MAX_WAIT_S = 30.0
# A session waits for a plan and for the run's end.
MAX_KEYS = 2
# A copy is one ledger entry; the ledger reads no longer one.
MAX_COPY_BYTES = 1 << 20
_MAX_PAYLOAD_BYTES = 1 << 36
_READS_AT_ONCE = 8
_CLOSED = 409
_ROOTS = ("campaigns/", "rosters/", "ledger/clients/")
# Below one campaign, nothing of others has to be passed over.
_DEEP = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreParts:
    """What the doors of the store share.

    Attributes:
        store: The campaigns' store.
        rounds: What is known of its rounds.
        watcher: Waits for keys.
        bodies: Reads bodies.
        sound: Judges copies of ledger entries.
        copies: How many copies each site may write.
        copy_bytes: How many bytes of copies each site may write.
        wide: How often each site may list all campaigns.
        listed: How many keys each site may have listed.
        waits: How many waiting requests each site may have.
    """

    store: SizedStore
    rounds: OpenRounds
    watcher: Watcher
    bodies: Bodies
    sound: Copies
    copies: Buckets
    copy_bytes: Buckets
    wide: Buckets
    listed: Buckets
    waits: AtOnce


class StoreDoor:
    """Answers the requests below ``/store``."""

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._kept = Kept()

    async def get(self, request: Request) -> Any:
        """Answer with an object that the site may read."""
        key = _key(request)
        await self._require_readable([key], site=request.state.site)
        kept = self._kept.get(key)
        n_bytes = len(kept[0]) if kept else await self._found(self._parts.store.size, key)

        async def read() -> tuple[bytes, str]:
            if kept:
                return kept
            async with self._reads:
                found: tuple[bytes, str] = await self._found(self._hashed, key, n_bytes)
            self._kept.keep(key, found)
            return found

        return ObjectAnswer(
            read, n_bytes=n_bytes, site=request.state.site, bodies=self._parts.bodies
        )

    def _hashed(self, key: str, n_bytes: int) -> tuple[bytes, str]:
        data = self._parts.store.get(key, max_bytes=n_bytes)
        return data, sha256_hex(data)

    async def _found(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await _asked(ask, *arguments)
        except ObjectMissing:
            raise HTTPException(404, "there is no object under this key") from None

    async def put(self, request: Request) -> Response:
        """Write an object of the site's own, once."""
        key, site = _key(request), request.state.site
        kind = writable_kind(key, site=site)
        if kind is None:
            raise _not_yours()
        length = announced(request, max_bytes=_LONGEST[kind])
        # Writing says the same; a short body is read for nothing sooner than the store asked twice.
        if kind == "copy" or length > MAX_DOCUMENT_BYTES:
            await self._require_new(key)
        limit = await self._limit_of_new(key, kind, site)
        began = time.monotonic()
        async with self._parts.bodies.read(request, max_bytes=limit) as data:
            if time.monotonic() - began > 1:
                # The round may have ended while the body was on its way.
                await self._limit(key, kind, site, is_counted=False)
            if kind == "copy":
                self._parts.copy_bytes.require(site, "bytes of copies for witnesses")
                await _asked(lambda: self._parts.sound.require_sound(key, data, site=site))
                self._parts.copy_bytes.spend(site, len(data))
            written = await _asked(self._parts.store.put_once, key, data)
        if not written:
            raise _written_before()
        if kind == "copy":
            self._parts.sound.written(key)
        return Response(status_code=201)

    async def keys(self, request: Request) -> Response:
        """List the keys below a prefix that the site may read."""
        prefix, site = request.query_params.get("prefix", ""), request.state.site
        if not _is_listed(prefix, site=site):
            raise HTTPException(
                403, "keys are listed below campaigns/, rosters/, ledger/clients/ or witness/SITE/"
            )
        if prefix.count("/") < _DEEP and prefix.startswith("campaigns/"):
            self._parts.wide.require(site, "listings of all campaigns")
        self._parts.listed.require(site, "keys listed")
        n_found, readable = await _asked(self._listed, prefix, site)
        self._parts.listed.spend(site, n_found)
        return JSONResponse(readable)

    def _listed(self, prefix: str, site: str) -> tuple[int, list[str]]:
        found = self._parts.store.list(prefix)
        readable = [key for key in found if is_readable(key, site=site)]
        return len(found), self._concerning(readable, site)

    async def wait(self, request: Request) -> Response:
        """Answer once one of some keys exists, or with an empty list."""
        wanted, site = request.query_params.getlist("key"), request.state.site
        if not 1 <= len(wanted) <= MAX_KEYS:
            raise HTTPException(400, f"{len(wanted)} keys are named, expected 1 to {MAX_KEYS}")
        await self._require_readable(wanted, site=site)
        seconds = _seconds(request.query_params.get("seconds", "20"))
        with self._parts.waits.one(site):
            return JSONResponse(await self._waited(request, wanted, seconds))

    async def _waited(self, request: Request, wanted: list[str], seconds: float) -> list[str]:
        waiting = asyncio.create_task(self._parts.watcher.wait(wanted, seconds=seconds))
        gone = asyncio.create_task(_gone(request))
        try:
            # Whoever has gone away would otherwise keep one of the site's places.
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else []
        finally:
            waiting.cancel()
            gone.cancel()

    async def _require_readable(self, wanted: list[str], *, site: str) -> None:
        if not all(is_readable(key, site=site) for key in wanted):
            raise _not_yours()
        if await _asked(self._concerning, wanted, site) != wanted:
            raise _not_yours()

    def _concerning(self, found: list[str], site: str) -> list[str]:
        return [key for key in found if self._parts.rounds.concerns(key, site=site)]

    async def _require_new(self, key: str) -> None:
        if await _asked(exists, self._parts.store, key):
            raise _written_before()

    async def _limit_of_new(self, key: str, kind: Kind, site: str) -> int:
        try:
            return await self._limit(key, kind, site)
        except HTTPException as refused:
            # Whoever sends an answer again learns that it is there, also when the round is over.
            if refused.status_code == _CLOSED:
                await self._require_new(key)
            raise

    async def _limit(self, key: str, kind: Kind, site: str, *, is_counted: bool = True) -> int:
        of = round_of_update(key)
        if of is None:
            if is_counted:
                self._parts.copies.require(site, "copies for witnesses")
            return MAX_COPY_BYTES
        try:
            payload = await asyncio.to_thread(
                lambda: self._parts.rounds.longest_payload(of[0], of[1], site=site)
            )
        except RoundClosed as error:
            raise HTTPException(_CLOSED, str(error)) from None
        except StoreError as error:
            raise _unavailable(error) from error
        return payload if kind == "payload" else MAX_DOCUMENT_BYTES


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


_LONGEST: dict[Kind, int] = {
    "payload": _MAX_PAYLOAD_BYTES,
    "document": MAX_DOCUMENT_BYTES,
    "copy": MAX_COPY_BYTES,
}


async def _asked(ask: Callable[..., Any], *arguments: Any) -> Any:
    """Ask the store in a thread; ``ObjectMissing`` passes, what else goes wrong is a 503."""
    try:
        return await asyncio.to_thread(ask, *arguments)
    except ObjectMissing:
        raise
    except ObjectCorrupt as error:
        log.exception("object is damaged")
        raise HTTPException(500, "the object is damaged; tell the coordinator") from error
    except StoreError as error:
        raise _unavailable(error) from error


def _unavailable(error: StoreError) -> HTTPException:
    log.warning("store does not answer error=%s", error)
    return HTTPException(503, "the store does not answer; try again", {"Retry-After": "2"})


def _written_before() -> HTTPException:
    return HTTPException(412, "this object was written before; nothing is replaced")


def _not_yours() -> HTTPException:
    return HTTPException(403, "this key is not for this site")


def _key(request: Request) -> str:
    try:
        return require_key(request.path_params["key"])
    except ValueError:
        raise _not_yours() from None


def _is_listed(prefix: str, *, site: str) -> bool:
    try:
        require_prefix(prefix)
    except ValueError:
        return False
    return prefix.startswith((*_ROOTS, f"witness/{site}/"))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise HTTPException(400, "seconds is no number of seconds, expected 0 to 30")
    return min(seconds, MAX_WAIT_S)
