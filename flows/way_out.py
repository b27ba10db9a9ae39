"""How a site's worker reaches its coordinator: the greeting, the egress, and the record.

A worker without one speaks to the Prefect API that its environment names: the evaluation's, and a
site on the coordinator's own machine.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread

from fl_core.errors import ServerFailed, StoreUnavailable
from flows.egress import Egress
from flows.patience import wait_after
from tasks.gateway_access import SiteDoor
from tasks.gateway_client import PROCESS
from tasks.greeting import say_hello
from tasks.hello import Welcome
from tasks.outgoing import OutgoingLog

log = logging.getLogger(__name__)

_NO_PROXY = "NO_PROXY"


@dataclass(frozen=True, slots=True)
class WayOut:
    """A site's open way to its coordinator.

    Attributes:
        door: The site and its gateway.
        egress: Where Prefect's client finds the API.
        record: What left, and what was kept.
    """

    door: SiteDoor
    egress: Egress
    record: OutgoingLog

    async def greet(self) -> None:
        """Say hello until the gateway answers; it may be away, or not know this site yet.

        Raises:
            ServerFailed: Versions do not fit; the text says which, and what to install.
        """
        failures = 0
        while True:
            try:
                welcome = await anyio.to_thread.run_sync(
                    say_hello, self.door, abandon_on_cancel=True
                )
            except StoreUnavailable as error:
                failures += 1
                wait_s = wait_after(failures)
                log.warning("%s; %s; again in %.1f s", error, error.hint, wait_s)
                await anyio.sleep(wait_s)
            else:
                require_welcome(welcome)
                log.info("gateway says welcome fedloom=%s", welcome.fedloom)
                return

    async def greet_again(self) -> None:
        """Say hello in the middle of a worker's life: the coordinator may have been upgraded.

        What does not fit is said in the log and waited for, because it may be taken back there.
        """
        try:
            welcome = await anyio.to_thread.run_sync(say_hello, self.door, abandon_on_cancel=True)
        except StoreUnavailable as error:
            log.warning("%s; %s", error, error.hint)
            return
        for complaint in welcome.complaints:
            log.error("no session is served: %s", complaint)

    async def tidy(self) -> None:
        """Set a long record aside; a full disk shows at the next request, which then stays."""
        try:
            await anyio.to_thread.run_sync(self.record.set_aside)
        except OSError as error:
            log.warning("the record is not set aside error=%s", error.strerror)


@contextmanager
def open_way_out(door: SiteDoor, *, pool: str) -> Iterator[WayOut]:
    """Open a site's way out and point Prefect's client of this process at it.

    Raises:
        ServerFailed: The listener does not start.
    """
    os.environ[PROCESS] = "worker"
    # A proxy of the environment stands outside; the listener is inside.
    spared = [each for each in os.environ.get(_NO_PROXY, "").split(",") if each]
    os.environ[_NO_PROXY] = ",".join([*spared, "127.0.0.1"])
    record = OutgoingLog(door.home, process="worker")
    with Egress(door, pool=pool, record=record) as egress:
        os.environ["PREFECT_API_URL"] = egress.url
        # Prefect logs addresses of its pages; without this they would show the egress' secret.
        os.environ["PREFECT_UI_URL"] = door.access.url
        yield WayOut(door, egress, record)


def require_welcome(welcome: Welcome) -> None:
    """Refuse to go on where versions do not fit.

    Raises:
        ServerFailed: There are complaints; all of them are in the text.
    """
    if welcome.complaints:
        raise ServerFailed(
            "; ".join(welcome.complaints), hint="nothing was trained; start the site again then"
        )
