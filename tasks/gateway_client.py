"""A site's requests to the gateway: all of them but those of Prefect's client.

Prefect's client leaves by ``flows.egress``; what it asks and this module share the identity, the
record and the words for what went wrong. The line of the record is written first, then the request
is sent, then it is written how it ended. What is safe to repeat is repeated after a pause when no
answer comes or the gateway is busy: reads, and writes that the store takes once. Whatever goes
wrong is said in terms of what the operator can do about it, because between a hospital and its
coordinator stand two firewalls and somebody's proxy.
"""

import functools
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar

import httpx

from fl_core.errors import ObjectCorrupt, StoreUnavailable
from tasks.gateway_access import ROTATION, SiteDoor
from tasks.gateway_identity import HEADERS, Identity, identity_stamp, read_identity
from tasks.outgoing import OutgoingLog

PROCESS = "FEDLOOM_PROCESS_KIND"
ALLOWED_SKEW_S = 60.0
# Of a list of keys, a welcome, or the words of a refusal.
MAX_ANSWER_BYTES = 16 << 20
_PAUSES_S = (0.2, 1.0, 3.0)
_LONGEST_PAUSE_S = 10.0
_BUSY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_REPEATABLE = {"GET", "PUT"}
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)

log = logging.getLogger(__name__)

T = TypeVar("T")


class GatewayClient:
    """Send requests to one gateway as one site; safe to share between threads.

    Args:
        door: The site and its gateway.
        record: Where every request is noted.
    """

    def __init__(self, door: SiteDoor, record: OutgoingLog) -> None:
        self.door = door
        self._record = record
        self._lock = threading.Lock()
        self._open: tuple[Identity, httpx.Client] | None = None
        self._skew_told = False

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        read: Callable[[httpx.Response], T],
    ) -> T:
        """Send one request, and return what ``read`` makes of the answer, whatever its status.

        Args:
            method: HTTP method; GET and PUT are repeated where no answer came.
            path: Path with query, quoted.
            body: The body; empty for none.
            read: Called with the answer before its body is read.

        Raises:
            StoreUnavailable: No answer; says why and what to do. Or the record cannot be written.
        """
        pauses_s = iter(_PAUSES_S if method in _REPEATABLE else ())
        while True:
            try:
                answer = self._once(method, path, body, read)
            except httpx.HTTPError as error:
                pause_s = None if _is_final(error) else next(pauses_s, None)
                if pause_s is None:
                    raise no_answer(self.door, error) from error
            else:
                if not isinstance(answer, _Busy):
                    return answer
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    raise StoreUnavailable(
                        f"the gateway at {self.door.access.url} answers {answer.status} to "
                        f"{method} {path}",
                        hint="it is busy or behind a broken proxy: try again later",
                    )
                pause_s = max(pause_s, answer.after_s)
            time.sleep(pause_s)

    def _once(
        self,
        method: str,
        path: str,
        body: bytes,
        read: Callable[[httpx.Response], T],
    ) -> "T | _Busy":
        identity, client = self._client()
        request = client.build_request(method, path, content=body)
        sent_path = request.url.raw_path.decode("ascii")
        request.headers.update(identity.headers(method, sent_path, body))
        name = self._record.sends(method, sent_path, body)
        status: int | None = None
        try:
            response = client.send(request, stream=True)
            try:
                status = response.status_code
                self._compare_clocks(response)
                if status in _BUSY:
                    return _Busy.of(response)
                return read(response)
            finally:
                response.close()
        finally:
            self._record.answered(name, status)

    def _client(self) -> tuple[Identity, httpx.Client]:
        stamp = identity_stamp(self.door)
        with self._lock:
            if self._open is None or self._open[0].stamp != stamp:
                identity = read_identity(self.door)
                client = httpx.Client(
                    base_url=self.door.access.url,
                    verify=identity.verify,
                    trust_env=not identity.is_local,
                    timeout=_TIMEOUT,
                    headers=HEADERS,
                )
                self._open = (identity, client)
            return self._open

    def _compare_clocks(self, response: httpx.Response) -> None:
        behind_s = seconds_behind(response, now=datetime.now(UTC))
        if behind_s is not None and abs(behind_s) > ALLOWED_SKEW_S and not self._skew_told:
            self._skew_told = True
            log.warning("clocks differ %s", skew_text(behind_s))


class _Busy:
    def __init__(self, status: int, after_s: float) -> None:
        self.status, self.after_s = status, after_s

    @classmethod
    def of(cls, response: httpx.Response) -> "_Busy":
        stated = response.headers.get("retry-after", "")
        after_s = float(stated) if stated.isdecimal() else 0.0
        return cls(response.status_code, min(after_s, _LONGEST_PAUSE_S))


def shared_client(door: SiteDoor) -> GatewayClient:
    """Return this process' one client of a gateway."""
    return _shared(os.getpid(), door, os.environ.get(PROCESS, "command"))


@functools.lru_cache(maxsize=32)
def _shared(process: int, door: SiteDoor, kind: str) -> GatewayClient:  # noqa: ARG001  a fork must not share sockets
    return GatewayClient(door, OutgoingLog(door.home, process=kind))


def body_of(response: httpx.Response, *, max_bytes: int) -> bytes:
    """Return an answer's body, read piece by piece, so that no length is believed.

    Args:
        response: The answer, its body not read yet.
        max_bytes: Most that is read.

    Raises:
        ObjectCorrupt: There is more.
    """
    pieces, n_bytes = [], 0
    for piece in response.iter_bytes():
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise ObjectCorrupt(f"the gateway sends more than the {max_bytes} bytes that are read")
        pieces.append(piece)
    return b"".join(pieces)


def detail_of(response: httpx.Response) -> str:
    """Return what the gateway says of a refusal, one line, or its status."""
    try:
        said = json.loads(body_of(response, max_bytes=MAX_ANSWER_BYTES))["detail"]
    except (ValueError, KeyError, TypeError, RecursionError, ObjectCorrupt):
        said = ""
    shown = " ".join(str(said).split())[:300]
    return "".join(c for c in shown if c.isprintable()) or f"status {response.status_code}"


def refusal(door: SiteDoor, status: int, detail: str, *, what: str) -> StoreUnavailable:
    """Return the error for an answer that lets a site do nothing, with its remedy."""
    hints: dict[int, str] = {
        HTTPStatus.UNAUTHORIZED: _pending(door)
        or "this site is not enrolled there: give enrol.json to the coordinator, and compare the "
        "clocks",
        HTTPStatus.FORBIDDEN: "the site was revoked, or this is not its own: ask the coordinator",
        HTTPStatus.CONFLICT: "the versions do not fit: see the complaint",
    }
    return StoreUnavailable(
        f"the gateway at {door.access.url} refuses to {what}: {detail}",
        hint=hints.get(status, "look into the gateway's record"),
    )


def no_answer(door: SiteDoor, error: httpx.HTTPError) -> StoreUnavailable:
    """Return the error for a request that got no answer, with the likeliest cause."""
    said = str(error).lower()
    url = door.access.url
    if "certificate verify failed" in said or "certificate_verify_failed" in said:
        return StoreUnavailable(
            f"somebody else answers at {url}: its certificate is not the one that this site pinned",
            hint="a proxy that reads TLS, or a gateway with a new certificate: compare the "
            "fingerprint with the coordinator's operator, then run `fedloom site gateway --invite "
            "FILE`",
        )
    if "alert" in said and "unknown ca" not in said:
        return StoreUnavailable(
            f"the gateway at {url} ends the TLS handshake: {_alert(said)}",
            hint="an expired certificate, a wrong clock, or something between that speaks another "
            "TLS: run `fedloom doctor`",
        )
    if "alert" in said:
        return StoreUnavailable(
            f"the gateway at {url} does not know this site's certificate",
            hint=_pending(door)
            or "this site is not enrolled there: give enrol.json to the coordinator",
        )
    causes = {
        httpx.ConnectTimeout: "no route: nothing answers; ask for the firewall's rule to be opened",
        httpx.ConnectError: "it cannot be reached: check address, name and the outgoing firewall",
        httpx.ProxyError: "the proxy of this machine refuses: check HTTPS_PROXY and NO_PROXY",
    }
    hint = next((text for kind, text in causes.items() if isinstance(error, kind)), "")
    return StoreUnavailable(
        f"the gateway at {url} does not answer ({type(error).__name__})",
        hint=hint or "the connection broke: it is tried again",
    )


def _alert(said: str) -> str:
    """Return the alert's name from OpenSSL's text, such as ``certificate expired``."""
    found = re.search(r"alert ([a-z ]{1,40})", said)
    return "an alert without a name" if found is None else f"alert {found[1].strip()}"


def _pending(door: SiteDoor) -> str:
    """Return what to do where a change of keys is under way; empty where none is."""
    if not (door.home / ROTATION).exists():
        return ""
    return "a change of keys is pending here: run `fedloom site rotate --finish`"


def seconds_behind(response: httpx.Response, *, now: datetime) -> float | None:
    """Return how far this machine's clock is behind the gateway's; None where it says nothing."""
    try:
        there = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return None
    there = there if there.tzinfo is not None else there.replace(tzinfo=UTC)
    return (there - now).total_seconds()


def skew_text(behind_s: float) -> str:
    """Say that a clock is wrong, and why that matters."""
    word = "behind" if behind_s > 0 else "ahead of"
    return (
        f"this clock is {abs(behind_s):.0f} s {word} the gateway's, expected at most "
        f"{ALLOWED_SKEW_S:.0f} s; deadlines and signed requests depend on it: set up time "
        "synchronisation"
    )


def _is_final(error: httpx.HTTPError) -> bool:
    said = str(error).lower()
    return "certificate" in said or "alert" in said
