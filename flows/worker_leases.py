"""Whether a site's worker is still there: its lease is the heartbeat that Prefect keeps of it.

A run whose host is gone stays Running for ever (PrefectHQ/prefect issue 16746). A worker sends its
heartbeat whatever its run does, so one that has not been heard of for two of its intervals holds no
run any more, as far as anybody can tell. Time is measured here, between two looks that show the
same heartbeat, and never by comparing two machines' clocks: one of them may be an hour off.

Time in which Prefect did not answer is nobody's silence: no worker could be heard then. A look that
failed, or was answered late, starts every lease anew; what passed between two looks counts as one
missed heartbeat at most, since nobody knows whether the server was there.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Worker

from fl_core.errors import ServerFailed

MISSED = 2
_UNKNOWN_INTERVAL_S = 30
# Asking at every look would cost one request per site and look; a lease is longer than this.
_ASK_AGAIN_S = 4.0
# The client repeats a request that the server refuses for want of its database. A worker that was
# kept from its heartbeat for less than this is heard again within its lease (flows.site_worker).
_LATE_S = 5.0


@dataclass(slots=True)
class _Lease:
    heard: datetime | None
    since: float
    interval_s: float
    asked_at: float


class WorkerLeases:
    """The leases of the workers of several pools, as one process has seen them.

    Args:
        clock: Seconds from any fixed point; only differences count.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._answered_at = clock()

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Surround one look, from its first request on.

        Raises:
            ServerFailed: As its body does; every lease then starts anew.
        """
        self._answered_at = self._clock()
        try:
            yield
        except ServerFailed:
            self._start_anew()
            raise

    def lost(self, client: SyncPrefectClient, pools: Iterable[str]) -> set[str]:
        """Return the pools of which no worker has been heard for two intervals.

        One request per pool, at most every few seconds. A pool that is looked at for the first time
        is never lost: nobody knows yet whether its heartbeat moves.
        """
        self._answered()
        return {pool for pool in pools if self._is_lost(client, pool)}

    def is_silent(self, pool: str) -> bool:
        """Say whether a heartbeat is due that did not come; nobody is asked."""
        lease = self._leases.get(pool)
        return lease is not None and self._clock() - lease.since >= lease.interval_s

    def _is_lost(self, client: SyncPrefectClient, pool: str) -> bool:
        lease = self._leases.get(pool)
        if lease is None or self._is_due(lease):
            lease = self._asked(client, pool)
        return self._is_over(lease)

    def _is_due(self, lease: _Lease) -> bool:
        # A verdict is never made from an old answer: the heartbeat may have come since.
        age_s = self._clock() - lease.asked_at
        return age_s >= min(_ASK_AGAIN_S, lease.interval_s / 2) or self._is_over(lease)

    def _is_over(self, lease: _Lease) -> bool:
        return self._clock() - lease.since > MISSED * lease.interval_s

    def _asked(self, client: SyncPrefectClient, pool: str) -> _Lease:
        began = self._clock()
        heard, interval_s = _latest(client.read_workers_for_work_pool(pool))
        self._answered()
        now, known = self._clock(), self._leases.get(pool)
        since = now
        if known is not None and heard == known.heard:
            unlooked = max(0.0, began - known.asked_at - interval_s)
            since = min(now, known.since + unlooked)
        lease = self._leases[pool] = _Lease(heard, since, interval_s, now)
        return lease

    def _answered(self) -> None:
        now = self._clock()
        if now - self._answered_at > _LATE_S:
            self._start_anew()
        self._answered_at = now

    def _start_anew(self) -> None:
        for lease in self._leases.values():
            lease.since = self._clock()


@functools.lru_cache(maxsize=16)
def leases_of(run: str) -> WorkerLeases:
    """Return what this process has seen of workers while it drives one campaign run."""
    del run
    return WorkerLeases()


def _latest(workers: Iterable[Worker]) -> tuple[datetime | None, float]:
    heard = {w.last_heartbeat_time: w for w in workers if w.last_heartbeat_time is not None}
    if not heard:
        return None, _UNKNOWN_INTERVAL_S
    newest = max(heard)
    return newest, heard[newest].heartbeat_interval_seconds or _UNKNOWN_INTERVAL_S
