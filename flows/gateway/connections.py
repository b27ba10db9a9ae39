"""Connections: whose certificate came with them, and how long they may say nothing.

uvicorn's HTTP protocol with two things added. The SHA-256 of the client's certificate goes into
the state of each request; the handshake has proved by then that the client holds its key. And a
connection that sends no whole request in time is closed: uvicorn 0.54 itself waits for ever once
the first byte is there.

The other half is the TLS context: it trusts exactly the certificates of the roster, each of which
is its own authority, takes no resumed sessions, and tells the record of handshakes that failed.
"""

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PEER = "peer_sha256"
HEADER_S = 20.0
KEEP_ALIVE_S = 75

log = logging.getLogger(__name__)


class Places:
    """Connections that are open, so that nobody takes the places of others.

    Args:
        of_one: How many one certificate, or one address without any, may have open.
        of_strangers: How many all those without a certificate may have open.
    """

    def __init__(self, *, of_one: int = 64, of_strangers: int = 1000) -> None:
        self._of_one, self._of_strangers = of_one, of_strangers
        self._open: dict[tuple[bool, str], int] = {}
        self._n_strangers = 0

    def take(self, name: str, *, is_stranger: bool) -> bool:
        """Take a place; False if there is none for this name."""
        count = self._open.get((is_stranger, name), 0)
        if count >= self._of_one or (is_stranger and self._n_strangers >= self._of_strangers):
            return False
        self._open[is_stranger, name] = count + 1
        self._n_strangers += is_stranger
        return True

    def give_back(self, name: str, *, is_stranger: bool) -> None:
        """Give back a place that was taken."""
        self._open[is_stranger, name] -= 1
        self._n_strangers -= is_stranger
        if not self._open[is_stranger, name]:
            del self._open[is_stranger, name]


class SiteProtocol(H11Protocol):
    """One connection of a site.

    Attributes:
        on_refused: Told of the address and of why a connection ended without a request.
        header_s: Seconds in which a whole request has to arrive.
        places: Who may have how many connections open.
    """

    on_refused: Callable[[str, str], None]
    places: Places
    header_s = HEADER_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Note the certificate and start the clock."""
        super().connection_made(transport)
        secured = transport.get_extra_info("ssl_object")
        der = None if secured is None else secured.getpeercert(binary_form=True)
        shown = hashlib.sha256(der).hexdigest() if der else None
        # uvicorn copies this into the state of every request of the connection.
        self.app_state = {**self.app_state, PEER: shown}
        self._header_timer: asyncio.TimerHandle | None = None
        self._place: tuple[str, bool] | None = None
        # What comes without TLS comes from the proxy on this machine.
        if secured is not None and not self._takes_place(shown):
            self._tell("too many connections")
            transport.abort()
            return
        self._expect_header()

    def _takes_place(self, shown: str | None) -> bool:
        name, is_stranger = shown or (self.client[0] if self.client else ""), shown is None
        if not self.places.take(name, is_stranger=is_stranger):
            return False
        self._place = name, is_stranger
        return True

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that has begun stops the clock once its header is whole."""
        super().data_received(data)
        if self._header_timer is None and self._is_idle():
            self._expect_header()
        elif not self._is_idle():
            self._stop_clock()

    def on_response_complete(self) -> None:
        """Wait for the next request of the connection."""
        super().on_response_complete()
        self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock with the connection."""
        self._stop_clock()
        if self._place is not None:
            name, is_stranger = self._place
            self._place = None
            self.places.give_back(name, is_stranger=is_stranger)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has a longer header than any honest request."""
        self._tell(msg)
        super().send_400_response(msg)

    def _tell(self, why: str) -> None:
        type(self).on_refused(self.client[0] if self.client else "", why)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_header(self) -> None:
        self._header_timer = self.loop.call_later(self.header_s, self._give_up)

    def _give_up(self) -> None:
        self._header_timer = None
        if self._is_idle() and not self.transport.is_closing():
            self._tell(f"no whole request in {self.header_s:g} s")
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def protocol_of(
    on_refused: Callable[[str, str], None],
    *,
    header_s: float = HEADER_S,
    places: Places | None = None,
) -> type[SiteProtocol]:
    """Return the protocol of one server, with whom it tells of what never became a request."""
    told = staticmethod(on_refused)
    own = {"on_refused": told, "header_s": header_s, "places": places or Places()}
    return type("ServedProtocol", (SiteProtocol,), own)


def server_context(
    certificate: Path, key: Path, *, on_refused: Callable[[str], None]
) -> ssl.SSLContext:
    """Return the gateway's TLS context, which trusts nobody yet.

    Args:
        certificate: The gateway's certificate, PEM.
        key: Its key, PEM.
        on_refused: Told why a handshake failed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would be let in by what was checked when it began.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.sslobject_class = _telling(on_refused)
    return context


def trust(context: ssl.SSLContext, certificates: Iterable[str]) -> None:
    """Add certificates to those that a context trusts; known ones do no harm.

    One that OpenSSL does not take shuts out its own site only.
    """
    for certificate in certificates:
        try:
            context.load_verify_locations(cadata=certificate)
        except ssl.SSLError as error:
            log.warning("certificate in the roster is not taken error=%s", error.reason)


def _telling(on_refused: Callable[[str], None]) -> Any:
    class TellingObject(ssl.SSLObject):
        """A TLS connection that says why it did not come about, to the record and to the client.

        asyncio 3.11 drops what is still to be sent when a handshake fails, so the client would see
        a broken connection. Asked for more data it sends first; the failure follows with whatever
        comes next, or with the time-out of the handshake.
        """

        _failure: ssl.SSLError | None = None

        def do_handshake(self) -> None:
            if self._failure is not None:
                raise self._failure
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_refused(_reason(error))
                self._failure = error
                raise ssl.SSLWantReadError from error

    return TellingObject


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate is not in the roster ({error.verify_message})"
    return f"no TLS ({error.reason or 'broken off'})".lower()
