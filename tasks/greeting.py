"""Saying hello to the gateway: which versions run at this site, and what the gateway says to them.

The worker says it and is judged by it from then on. The doctor asks the same question with the
answer alone in mind: what it says is not kept, because beside a running worker it may be another
installation that speaks.
"""

from http import HTTPStatus

import httpx

from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.errors import ObjectCorrupt, StoreUnavailable
from tasks.gateway_access import SiteDoor
from tasks.gateway_client import MAX_ANSWER_BYTES, body_of, detail_of, refusal, shared_client
from tasks.hello import HELLO, HELLO_CHECK, Welcome, own_hello


def say_hello(door: SiteDoor, *, is_check: bool = False) -> Welcome:
    """Tell the gateway which versions run here, and return what it says to them.

    Args:
        door: The site and its gateway.
        is_check: Ask only; the gateway keeps what the site's worker said.

    Raises:
        StoreUnavailable: No answer, or this site is not known there.
    """
    body = to_bytes(own_hello(door.site))

    def read(response: httpx.Response) -> Welcome:
        if response.status_code not in {HTTPStatus.OK, HTTPStatus.CONFLICT}:
            raise refusal(door, response.status_code, detail_of(response), what="say hello")
        try:
            said = body_of(response, max_bytes=MAX_ANSWER_BYTES)
            return from_bytes(Welcome, said, what="the gateway's welcome")
        except ObjectCorrupt as error:
            raise StoreUnavailable(
                f"{door.access.url} does not answer like a gateway, expected a welcome; check the "
                "url and what stands in between"
            ) from error

    path = HELLO_CHECK if is_check else HELLO
    return shared_client(door).request("POST", path, body=body, read=read)
