"""The campaigns' store as a site reaches it: through the gateway, and only what is its own.

The gateway decides per key what this site may read and write, checks size, round and cohort before
it keeps a byte, and knows no way to remove an object. ``wait`` asks it to answer when one of a few
objects appears, so a session that waits for a plan costs one open request and finds the plan at
once.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from fl_core.artifacts.documents import LONGEST_DOCUMENT, sha256_hex
from fl_core.artifacts.store import require_key, require_length, require_prefix
from fl_core.errors import ObjectCorrupt, ObjectMissing, RoundClosed, StoreUnavailable
from tasks.gateway_access import SiteDoor
from tasks.gateway_client import (
    MAX_ANSWER_BYTES,
    GatewayClient,
    body_of,
    detail_of,
    refusal,
    shared_client,
)
from tasks.request_token import BODY_SHA256

LONGEST_WAIT_S = 30.0
# Inside the class ``list`` is the store's method.
_Keys = list[str]


class GatewayStore:
    """Write-once objects behind the gateway; safe to share between threads.

    Args:
        client: Sends the requests of this site.
    """

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    @classmethod
    def through(cls, door: SiteDoor) -> "GatewayStore":
        """Return the store behind a site's gateway; nothing is sent yet."""
        return cls(shared_client(door))

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes, compared with the SHA-256 that the gateway states.

        Without ``max_bytes`` as much as the longest document is read: a gateway that sends without
        end must not fill a site's memory.

        Raises:
            ObjectMissing: No object under ``key``.
            ObjectCorrupt: Other bytes than stated, or more than ``max_bytes``.
            StoreUnavailable: No answer, or the gateway refuses.
        """
        most = LONGEST_DOCUMENT if max_bytes is None else max_bytes

        def read(response: httpx.Response) -> bytes:
            if response.status_code == HTTPStatus.NOT_FOUND:
                raise ObjectMissing(f"no object under {key!r} at {self._client.door.access.url}")
            self._require(response, HTTPStatus.OK, f"read {key!r}")
            require_length(key, _stated_length(response), most)
            data = body_of(response, max_bytes=most)
            if response.headers.get(BODY_SHA256) != sha256_hex(data):
                raise ObjectCorrupt(f"object {key!r} has another sha-256 than the gateway states")
            return data

        return self._client.request("GET", _object(key), read=read)

    def put_once(self, key: str, data: bytes) -> bool:
        """Write the object unless one exists.

        A request whose answer got lost is repeated, so False can mean that an earlier try of this
        very call wrote the object; as with every False, go on from what is stored.

        Raises:
            RoundClosed: The round takes no more, or this site is not in it.
            ObjectCorrupt: The object is longer than the gateway takes; another try is no better.
            StoreUnavailable: No answer, or the gateway refuses.
        """

        def read(response: httpx.Response) -> bool:
            if response.status_code == HTTPStatus.PRECONDITION_FAILED:
                return False
            if response.status_code == HTTPStatus.CONFLICT:
                raise RoundClosed(f"cannot write {key!r}: {detail_of(response)}")
            if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise ObjectCorrupt(f"object {key!r} is too long: {detail_of(response)}")
            self._require(response, HTTPStatus.CREATED, f"write {key!r}")
            return True

        return self._client.request("PUT", _object(key), body=data, read=read)

    def list(self, prefix: str) -> _Keys:
        """Return the keys that start with ``prefix`` and that this site may read, sorted.

        Raises:
            StoreUnavailable: No answer, or the gateway refuses.
        """
        query = urlencode({"prefix": require_prefix(prefix)})
        return self._client.request(
            "GET", f"/store/keys?{query}", read=lambda response: self._keys(response, "list keys")
        )

    def wait(self, keys: Sequence[str], *, seconds: float) -> _Keys:
        """Return those of ``keys`` that exist, as soon as one does, else none after ``seconds``.

        Raises:
            StoreUnavailable: No answer, or the gateway refuses.
        """
        bounded_s = min(max(seconds, 0.0), LONGEST_WAIT_S)
        asked = [("key", require_key(key)) for key in keys]
        query = urlencode([*asked, ("seconds", f"{bounded_s:g}")])
        return self._client.request(
            "GET", f"/store/wait?{query}", read=lambda response: self._keys(response, "wait")
        )

    def discard(self, key: str) -> None:
        """Refuse: a site cannot take back what it wrote.

        Raises:
            StoreUnavailable: Always.
        """
        raise StoreUnavailable(
            f"cannot remove {key!r}: a site cannot take back what it wrote",
            hint="the coordinator removes what may not stay",
        )

    def _keys(self, response: httpx.Response, what: str) -> _Keys:
        self._require(response, HTTPStatus.OK, what)
        try:
            found: Any = json.loads(body_of(response, max_bytes=MAX_ANSWER_BYTES))
        except (ValueError, RecursionError, ObjectCorrupt) as error:
            raise self._garbled(what) from error
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise self._garbled(what)
        return sorted(found)

    def _garbled(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._client.door.access.url} does not answer like a gateway when asked to {what}, "
            "expected a list of keys; check the url and what stands in between"
        )

    def _require(self, response: httpx.Response, expected: HTTPStatus, what: str) -> None:
        if response.status_code != expected:
            raise refusal(self._client.door, response.status_code, detail_of(response), what=what)


def _stated_length(response: httpx.Response) -> int:
    stated = response.headers.get("content-length", "")
    return int(stated) if stated.isdecimal() else 0


def _object(key: str) -> str:
    return "/store/objects/" + quote(require_key(key))
