"""A gateway with tight limits, in this process: what is slow, half sent or too much at one time.

It listens as behind a proxy, without TLS, so every site signs. The store is a folder.
"""

import asyncio
import hashlib
import json
import secrets
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import pytest
import uvicorn

from fl_core.artifacts.local import LocalStore
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.updates.signing import generate_key, public_hex
from flows.gateway.app import Gateway, make_app
from flows.gateway.connections import protocol_of
from flows.gateway.identity import Identifier, Nonces
from flows.gateway.limits import Limits, Rate
from flows.gateway.members import RosterWatch
from flows.gateway.prefect_door import PrefectAccess
from flows.gateway.record import Line, Record
from flows.processes import free_port
from tasks.request_token import BODY_SHA256, SignedRequest, authorization
from tests.signed_copies import copy_at

PUBLIC = "https://fl.example.org"
HEADER_S = 0.5
LIMITS = Limits(body_s=0.5, body_bytes_per_s=1 << 20, at_once=2, drained_bytes=1000)


class Tight:
    """A gateway of tight limits with one site, north."""

    def __init__(self, folder, limits: Limits = LIMITS, key=None) -> None:
        self.store = LocalStore(folder / "store")
        self.record = Record(folder / "gateway")
        self.key = key or generate_key()
        entry = RosterEntry(site="north", signing_key=public_hex(self.key), since=datetime.now(UTC))
        enrol(self.store, entry)
        gateway = Gateway(
            store=self.store,
            prefect=PrefectAccess(None),
            identifier=Identifier((PUBLIC,), Nonces(folder / "nonces")),
            roster=RosterWatch(self.store, lambda _: None),
            record=self.record,
            version="test",
            limits=limits,
        )
        self.refused: list[Line] = []
        told = protocol_of(lambda _, why: self.refused.append(why), header_s=HEADER_S)
        self.port = free_port()
        config = uvicorn.Config(
            make_app(gateway),
            port=self.port,
            http=told,
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.record.close()

    def headers(self, method: str, target: str, body: bytes = b"") -> dict[str, str]:
        request = SignedRequest(
            url=PUBLIC,
            site="north",
            method=method,
            target=target,
            body_sha256=hashlib.sha256(body).hexdigest(),
            expires=int(time.time()) + 60,
            nonce=secrets.token_hex(16),
        )
        signed = authorization(request, self.key)
        return {"Authorization": signed, BODY_SHA256: request.body_sha256}

    def get(self, target: str, **options) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{target}"
        return httpx.get(url, headers=self.headers("GET", target), timeout=30, **options)

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes as they are and read until the gateway closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            for part in parts:
                connection.sendall(part)
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
            return answer

    def upload(self, length: int, body: bytes) -> bytes:
        """Announce ``length`` bytes, send ``body``, and say no more."""
        target = "/store/objects/witness/north/data/row/000001.json"
        headers = self.headers("PUT", target, body)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{lines}\r\n"
        return self.raw(head.encode(), body)


@pytest.fixture
def tight(tmp_path):
    with Tight(tmp_path) as gateway:
        yield gateway


def test_signed_request_comes_through_a_proxy_that_ended_tls(tight):
    assert tight.get("/store/keys?prefix=rosters/").json() == ["rosters/000001.json"]


def test_query_of_a_stranger_is_not_in_the_record(tmp_path):
    with Tight(tmp_path) as tight:
        query = {"key": ["stranger's text"] * 13}
        httpx.get(f"http://127.0.0.1:{tight.port}/health", params=query)
        tight.get("/store/keys?prefix=rosters/")

    found = [json.loads(line) for line in tight.record.path.read_text().splitlines()]
    assert [(line["path"], line.get("keys")) for line in found] == [
        ("/health", None),
        ("/store/keys", ["rosters/"]),
    ]


def test_header_that_never_ends_is_cut_off_and_recorded(tight):
    answer = tight.raw(b"GET /health HTTP/1.1\r\nX-Slow: ")

    assert answer == b""
    assert tight.refused == [f"no whole request in {HEADER_S:g} s"]


def test_connection_that_says_nothing_is_cut_off(tight):
    assert tight.raw() == b""


def test_body_that_stops_half_way_is_cut_off_and_nothing_of_it_is_kept(tight):
    answer = tight.upload(100, b"half")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert tight.store.list("witness/") == []


def test_bytes_beyond_the_announced_ones_are_not_part_of_the_body(tight):
    answer = tight.upload(4, b"half and more")

    # The hash is of all that was sent, and the body ends where it was announced to end.
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert tight.store.list("witness/") == []


def test_more_waiting_requests_than_allowed_are_refused(tight):
    target = "/store/wait?key=rosters/000009.json&seconds=5"

    async def three() -> list[int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{tight.port}") as client:
            asked = [
                asyncio.create_task(client.get(target, headers=tight.headers("GET", target)))
                for _ in range(3)
            ]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            return [each.result().status_code for each in done]

    assert asyncio.run(three()) == [429]


def test_listing_of_many_keys_is_paid_off_before_the_next(tmp_path):
    with Tight(tmp_path, replace(LIMITS, listed=Rate(burst=2, per_s=0.001))) as tight:
        for number in range(1, 4):
            tight.store.put_once(f"witness/north/data/row/{number:06d}.json", b"copy")
        first = tight.get("/store/keys?prefix=witness/north/")
        second = tight.get("/store/keys?prefix=witness/north/")

    assert (first.status_code, len(first.json())) == (200, 3)
    assert second.status_code == 429


def test_more_keys_than_a_session_waits_for_are_refused(tight):
    target = "/store/wait?" + "&".join(f"key=rosters/00000{n}.json" for n in (7, 8, 9))

    assert tight.get(target).status_code == 400


def test_site_that_went_away_while_it_waited_keeps_no_place(tight):
    target = "/store/wait?key=rosters/000009.json&seconds=30"
    for _ in range(LIMITS.at_once):
        lines = "".join(f"{n}: {v}\r\n" for n, v in tight.headers("GET", target).items())
        with socket.create_connection(("127.0.0.1", tight.port), timeout=30) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())

    statuses = []
    while 200 not in statuses and len(statuses) < 100:
        statuses.append(tight.get("/store/keys?prefix=rosters/").status_code)

    assert statuses[-1] == 200


def test_prefect_that_is_away_is_an_error_of_one_request(tight):
    answer = tight.get("/api/work_pools/site-north")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert tight.get("/store/keys?prefix=rosters/").status_code == 200


def test_copies_for_witnesses_are_counted_by_themselves(tmp_path):
    with Tight(tmp_path, replace(LIMITS, copies=Rate(burst=1, per_s=0.001))) as tight:
        statuses = []
        for number in (1, 2):
            key = f"witness/north/data/row/{number:06d}.json"
            target, copy = f"/store/objects/{key}", copy_at(key, tight.key)
            url = f"http://127.0.0.1:{tight.port}{target}"
            headers = tight.headers("PUT", target, copy)
            statuses.append(httpx.put(url, content=copy, headers=headers).status_code)
        read = tight.get("/store/keys?prefix=rosters/")

    assert statuses == [201, 429]
    assert read.status_code == 200


def test_old_request_stays_used_after_the_gateway_was_started_again(tmp_path):
    with Tight(tmp_path) as tight:
        target = "/store/keys?prefix=rosters/"
        headers = tight.headers("GET", target)
        first = httpx.get(f"http://127.0.0.1:{tight.port}{target}", headers=headers)
    with Tight(tmp_path, key=tight.key) as again:
        second = httpx.get(f"http://127.0.0.1:{again.port}{target}", headers=headers)

    assert (first.status_code, second.status_code) == (200, 401)
    assert "used before" in second.json()["detail"]


def test_events_of_a_site_are_counted_by_themselves(tmp_path):
    with Tight(tmp_path, replace(LIMITS, events=Rate(burst=1, per_s=0.001))) as tight:
        url = f"http://127.0.0.1:{tight.port}/api/events"
        sent = [
            httpx.post(url, content=b"[]", headers=tight.headers("POST", "/api/events", b"[]"))
            for _ in range(2)
        ]
        read = tight.get("/store/keys?prefix=rosters/")

    assert [answer.status_code for answer in sent] == [204, 429]
    assert read.status_code == 200
