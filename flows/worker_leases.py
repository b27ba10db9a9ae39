"""Whether a site's worker is still there: its lease is the heartbeat that Prefect keeps of it.

A run whose host is gone stays Running for ever (PrefectHQ/prefect issue 16746). A worker sends its
heartbeat whatever its run does, so one that has not been heard of for two of its intervals holds no
run any more, as far as anybody can tell. Time is measured here, between two looks that show the
same heartbeat, and never by comparing two machines' clocks: one of them may be an hour off.
"""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Worker

MISSED = 2
_UNKNOWN_INTERVAL_S = 30
# Asking at every look would cost one request per site and look; a lease is longer than this.
_ASK_AGAIN_S = 4.0


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

    def lost(self, client: SyncPrefectClient, pools: Iterable[str]) -> set[str]:
        """Return the pools of which no worker has been heard for two intervals.

        One request per pool, at most every few seconds. A pool that is looked at for the first time
        is never lost: nobody knows yet whether its heartbeat moves.
        """
        return {pool for pool in pools if self._is_lost(client, pool)}

    def is_silent(self, pool: str) -> bool:
        """Say whether a heartbeat is due that did not come; nobody is asked."""
        lease = self._leases.get(pool)
        return lease is not None and self._clock() - lease.since > lease.interval_s

    def _is_lost(self, client: SyncPrefectClient, pool: str) -> bool:
        now, lease = self._clock(), self._leases.get(pool)
        if lease is None or now - lease.asked_at >= min(_ASK_AGAIN_S, lease.interval_s / 2):
            lease = self._asked(client, pool, now=now)
        return now - lease.since > MISSED * lease.interval_s

    def _asked(self, client: SyncPrefectClient, pool: str, *, now: float) -> _Lease:
        heard, interval_s = _latest(client.read_workers_for_work_pool(pool))
        known = self._leases.get(pool)
        since = now if known is None or heard != known.heard else known.since
        lease = self._leases[pool] = _Lease(heard, since, interval_s, now)
        return lease


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
