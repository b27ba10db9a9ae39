"""Who may connect to the site's listener on loopback: processes of the worker's own account.

The path before the listener is secret, but its port is not: any user of the machine finds it and
could hold so many connections that the worker has no files left for its own. So a connection of
another account is dropped as it comes, there is a bound on all of them, and one that says nothing
is closed. The kernel's table of connections says whose the other end is; where there is no such
table, as outside Linux, the bound alone holds.
"""

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path

from flows.gateway.connections import SiteProtocol

MAX_CONNECTIONS = 64
_TABLE = Path("/proc/net/tcp")
_OWN, _OTHER, _UID = 1, 2, 7

log = logging.getLogger(__name__)


class LocalProtocol(SiteProtocol):
    """A connection of Prefect's client, which may become a WebSocket."""

    _is_upgraded = False

    @staticmethod
    def on_refused(address: str, why: str) -> None:  # noqa: ARG004  always this machine
        """Say why a connection ended; at no level that a stranger could fill a log with."""
        log.debug("connection to the site's way out closed why=%s", why)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Drop what is another account's, or one too many."""
        super().connection_made(transport)
        here, there = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        if len(self.connections) > MAX_CONNECTIONS or not is_own(here, there):
            transport.abort()

    def handle_websocket_upgrade(self, event: object) -> None:
        """Give the connection over; a WebSocket has no next header to wait for."""
        self._is_upgraded = True
        self._stop_clock()
        super().handle_websocket_upgrade(event)  # type: ignore[arg-type]

    def _expect_header(self) -> None:
        if not self._is_upgraded:
            super()._expect_header()


def is_own(here: tuple[str, int], there: tuple[str, int], table: Path = _TABLE) -> bool:
    """Say whether the other end of a connection on this machine is of this account.

    Args:
        here: Address and port of this end, IPv4.
        there: Address and port of the other end.
        table: The kernel's table of connections.
    """
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return True
    wanted = _entry(there), _entry(here)
    rows = (line.split() for line in lines)
    return any((row[_OWN], row[_OTHER]) == wanted and int(row[_UID]) == os.getuid() for row in rows)


def _entry(address: tuple[str, int]) -> str:
    # The kernel prints the four bytes as one number of this machine's byte order.
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"
