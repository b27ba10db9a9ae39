"""Asking an API until it answers: a site's worker never gives up on a server that is away.

The stock worker exits after some failures (PrefectHQ/prefect issue 22638), and then somebody has
to notice. Here every step is repeated for ever, with pauses that grow to a quarter of a minute.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import httpx

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0

# Answers that asking again does not change; 401 and 403 are worth waiting for while a site is
# being enrolled, but not for one run.
_FINAL_REFUSALS = (400, 403, 404, 409, 422)

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def until_done(
    step: Callable[[], Awaitable[T]],
    *,
    patient: bool = False,
    longest_wait_s: float = LONGEST_WAIT_S,
) -> T:
    """Repeat a step until the API answers it.

    Args:
        step: What is asked.
        patient: Also after a refusal that asking again does not change.
        longest_wait_s: What the pauses grow to.

    Raises:
        httpx.HTTPStatusError: The API refuses for good, and ``patient`` is not set.
    """
    failures = 0
    while True:
        try:
            return await step()
        except httpx.HTTPError as error:
            if not patient and _is_final(error):
                raise
            failures += 1
            await _back_off(error, min(longest_wait_s, wait_after(failures)))


async def repeat(
    step: Callable[[], Awaitable[Any]],
    interval_s: float,
    longest_wait_s: float = LONGEST_WAIT_S,
) -> None:
    """Run a step for ever, with a pause between calls and other ones while the API is away."""
    while True:
        await until_done(step, patient=True, longest_wait_s=longest_wait_s)
        await anyio.sleep(interval_s)


async def done_before(stopped: anyio.Event, step: Awaitable[object]) -> bool:
    """Run a step, and say whether it was done before the worker was to stop; raises as it does."""
    doing = asyncio.ensure_future(step)
    stopping = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
        return False
    await doing
    return True


def wait_after(failures: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * float(1 << min(failures, 10)))


def _is_final(error: httpx.HTTPError) -> bool:
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return error.response.status_code in _FINAL_REFUSALS


async def _back_off(error: httpx.HTTPError, wait_s: float) -> None:
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else "none"
    logger.warning(
        "api does not answer as expected error=%s status=%s again_in_s=%.1f",
        type(error).__name__,
        status,
        wait_s,
    )
    await anyio.sleep(wait_s)
