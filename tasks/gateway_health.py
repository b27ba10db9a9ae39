"""Whether a site reaches its gateway, step by step: address, certificate, identity, store.

A hospital's firewall, a proxy that reads TLS, a wrong clock and a missing enrolment all look alike
from a worker's log. Here each is a step of its own, with what to ask whom for. Two requests are
made to be refused or answered as the store's doors promise: a document that all sites may read,
and one of another site. Every request stands in the site's record of what left.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import quote, urlencode

import httpx

from fl_core.errors import ObjectCorrupt
from tasks.checks import Check, called
from tasks.gateway_access import SiteDoor
from tasks.gateway_client import (
    ALLOWED_SKEW_S,
    MAX_ANSWER_BYTES,
    GatewayClient,
    body_of,
    detail_of,
    refusal,
    seconds_behind,
    shared_client,
    skew_text,
)
from tasks.greeting import say_hello
from tasks.tls_health import tls_checks

SKEW_TO_SEE_S = 5.0


def gateway_checks(door: SiteDoor) -> Iterator[Check]:
    """Check the way to the gateway; ends at the first step that those after it need.

    Args:
        door: The site, its folder and its gateway.
    """
    for check in tls_checks(door):
        yield check
        if check.verdict == "fail":
            return
    client = shared_client(door)
    health = _Health(client)
    answered = called("gateway", health.ask, remedy="look into the gateway's record")
    yield answered
    if answered.verdict != "ok":
        return
    yield health.clock
    greeted = called("enrolment and versions", lambda: _hello(client), remedy="")
    yield greeted
    if greeted.verdict == "ok":
        yield called("store", lambda: _public_key(client), remedy="")
        yield called("store of another site", lambda: _foreign_key(client), remedy="")


class _Health:
    """The answer of `GET /health`, with the clock that it tells."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self.clock = Check("clock", "warn", "the gateway tells no time")

    def ask(self) -> str:
        return self._client.request("GET", "/health", read=self._read)

    def _read(self, response: httpx.Response) -> str:
        behind_s = seconds_behind(response, now=datetime.now(UTC))
        if response.status_code != HTTPStatus.OK:
            raise refusal(
                self._client.door, response.status_code, detail_of(response), what="say how it is"
            )
        if behind_s is not None:
            self.clock = _clock(behind_s)
        try:
            version = json.loads(body_of(response, max_bytes=MAX_ANSWER_BYTES))["fedloom"]
        except (ObjectCorrupt, ValueError, KeyError, TypeError):
            raise ObjectCorrupt(
                f"{self._client.door.access.url} does not answer like a gateway; check the url and "
                "what stands in between"
            ) from None
        return f"fedloom {version} answers at {self._client.door.access.url}"


def _clock(behind_s: float) -> Check:
    if abs(behind_s) > ALLOWED_SKEW_S:
        return Check("clock", "fail", skew_text(behind_s), "run NTP, here or at the coordinator")
    found = f"{-behind_s:+.0f} s against the gateway"
    if abs(behind_s) > SKEW_TO_SEE_S:
        return Check("clock", "warn", found, "deadlines are absolute; run NTP on both machines")
    return Check("clock", "ok", found)


def _hello(client: GatewayClient) -> str:
    """Be told whether site and versions fit, without taking the worker's word from it."""
    said = say_hello(client.door, is_check=True)
    if said.complaints:
        raise refusal(
            client.door, HTTPStatus.CONFLICT, "; ".join(said.complaints), what="work with it"
        )
    return f"known as {client.door.site}, fits fedloom {said.fedloom}"


def _public_key(client: GatewayClient) -> str:
    """List the rosters, which every site may read."""
    query = urlencode({"prefix": "rosters/"})

    def read(response: httpx.Response) -> str:
        if response.status_code != HTTPStatus.OK:
            raise refusal(client.door, response.status_code, detail_of(response), what="list")
        found = json.loads(body_of(response, max_bytes=MAX_ANSWER_BYTES))
        return f"reads {len(found)} rosters"

    return client.request("GET", f"/store/keys?{query}", read=read)


def _foreign_key(client: GatewayClient) -> str:
    """Ask for what another site would have sent; only a refusal is right."""
    other = f"not-{client.door.site}"[:64].rstrip("-")
    key = f"campaigns/doctor/rounds/0001/updates/{other}/manifest.json"

    def read(response: httpx.Response) -> str:
        if response.status_code == HTTPStatus.FORBIDDEN:
            return "refuses what another site sends, as it should"
        raise ObjectCorrupt(
            f"the gateway answers {response.status_code} for an update of another site, expected "
            "403; tell the coordinator's operator, who should not run rounds with it"
        )

    return client.request("GET", "/store/objects/" + quote(key), read=read)
