"""The gateway as a process: behind a proxy, without its servers, and how it ends."""

import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import httpx
import pytest
from site_gateway import NOBODY

from fl_core.artifacts.local import LocalStore
from fl_core.campaign.roster import RosterEntry, enrol
from fl_core.updates.signing import generate_key, public_hex
from flows.processes import free_port
from tasks.request_token import SignedRequest, authorization

PUBLIC = "https://fl.example.org"


class Proxied:
    """`fedloom gateway start --behind-proxy` over a store in a folder."""

    def __init__(self, folder, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = ["gateway", "start", "--home", str(folder / "home"), "--port", str(self.port)]
        own = {k: v for k, v in os.environ.items() if not k.startswith(("FEDLOOM", "PREFECT"))}
        self.log = (folder / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", *words, "--url", PUBLIC, "--behind-proxy"],
            env=own | {"PREFECT_API_URL": NOBODY} | settings,
            stdout=self.log,
            stderr=self.log,
        )

    def __enter__(self):
        for _ in range(600):
            assert self.process.poll() is None, "the gateway ended"
            try:
                self.health = httpx.get(f"{self.url}/health")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return self
        raise AssertionError("the gateway does not answer")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def signed(key, target: str) -> dict[str, str]:
    request = SignedRequest(
        url=PUBLIC,
        site="north",
        method="GET",
        target=target,
        body_sha256=hashlib.sha256().hexdigest(),
        expires=int(time.time()) + 60,
        nonce=secrets.token_hex(16),
    )
    return {"Authorization": authorization(request, key)}


@pytest.fixture
def key(tmp_path):
    key = generate_key()
    entry = RosterEntry(site="north", signing_key=public_hex(key), since=datetime.now(UTC))
    enrol(LocalStore(tmp_path / "store"), entry)
    return key


def test_gateway_behind_a_proxy_knows_a_site_by_the_address_that_the_site_uses(tmp_path, key):
    target = "/store/keys?prefix=rosters/"
    with Proxied(tmp_path, FEDLOOM_STORE=f"file://{tmp_path}/store") as gateway:
        known = httpx.get(gateway.url + target, headers=signed(key, target))
        unknown = httpx.get(gateway.url + target)

    assert (known.status_code, known.json()) == (200, ["rosters/000001.json"])
    assert unknown.status_code == 401


def test_gateway_starts_before_its_store_and_says_what_is_away(tmp_path, key):
    target = "/store/keys?prefix=rosters/"
    away = {
        "FEDLOOM_STORE": "s3://bucket",
        "FEDLOOM_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "FEDLOOM_S3_ACCESS_KEY": "none",
        "FEDLOOM_S3_SECRET_KEY": "none",
    }
    with Proxied(tmp_path, **away) as gateway:
        answer = httpx.get(gateway.url + target, headers=signed(key, target), timeout=60)

    assert gateway.health.status_code == 200
    assert answer.status_code == 503


def test_asked_to_end_it_cuts_off_who_waits_and_goes(tmp_path, key):
    target = "/store/wait?key=rosters/000009.json&seconds=30"
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(key, target).items())
    with (
        Proxied(tmp_path, FEDLOOM_STORE=f"file://{tmp_path}/store") as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as waiting,
    ):
        waiting.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        # Answered after the one that waits was taken up, because it came later.
        assert httpx.get(gateway.url + target, headers=signed(key, "/another")).status_code == 401
        gateway.process.send_signal(signal.SIGTERM)
        code = gateway.process.wait(timeout=25)
        record = (tmp_path / "home" / "gateway" / "record.jsonl").read_text().splitlines()

    waited = [line for line in map(json.loads, record) if line.get("site") == "north"]
    assert code in {0, -signal.SIGTERM}
    assert [(line["path"], line["status"] in {0, 500}) for line in waited] == [
        ("/store/wait", True)
    ]
