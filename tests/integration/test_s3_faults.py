"""Servers that lie, hang, lose answers or overwrite, over real HTTP.

SeaweedFS does none of this on demand, and moto cannot stage it, so a small server is told before
each request what to do wrong. It knows as much of S3 as the store uses: PUT, GET, HEAD.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.config import Config

from fl_core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from tasks import object_store
from tasks.object_store import S3Location, S3Store, connect, ensure_bucket, require_write_once


@dataclass
class Behaviour:
    """What the server keeps and what it does wrong.

    Attributes:
        faults: What to do wrong with the next requests, in order; then nothing.
        overwrites: Whether If-None-Match is ignored.
        keeps_checksums: Whether checksum and metadata of an object are given back.
        spoils: What is done to a body before it is given back, its length kept in the header.
    """

    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    faults: deque[str] = field(default_factory=deque)
    overwrites: bool = False
    keeps_checksums: bool = True
    spoils: Callable[[bytes], bytes] = bytes
    requests: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._goes_wrong(data):
            return
        exists = self.path in self.behaviour.objects and not self.behaviour.overwrites
        if exists and self.headers["If-None-Match"] == "*":
            self._answer(412, error="PreconditionFailed")
            return
        self._store(data)
        self._answer(200)

    def do_GET(self):
        if self._goes_wrong(b""):
            return
        if self.path not in self.behaviour.objects:
            self._answer(404, error="NoSuchKey")
            return
        data, headers = self.behaviour.objects[self.path]
        self._answer(200, body=self.behaviour.spoils(data), length=len(data), headers=headers)

    def do_HEAD(self):
        if not self._goes_wrong(b""):
            self._answer(200)

    def _goes_wrong(self, data: bytes) -> bool:
        self.behaviour.requests += 1
        fault = self.behaviour.faults.popleft() if self.behaviour.faults else ""
        if fault == "hang":
            time.sleep(1.5)
        if fault in {"lose the answer", "overwrite and deny it"}:
            self._store(data)
        if fault in {"hang", "lose the answer"}:
            self.close_connection = True
        elif fault == "overwrite and deny it":
            self._answer(412, error="PreconditionFailed")
        elif fault:
            status, code = fault.split()
            self._answer(int(status), error=code)
        return bool(fault)

    def _store(self, data: bytes) -> None:
        kept = ("x-amz-checksum-sha256", "x-amz-meta-sha256")
        headers = {name: self.headers[name] for name in kept}
        self.behaviour.objects[self.path] = (
            data,
            headers if self.behaviour.keeps_checksums else {},
        )

    def _answer(self, status, *, error="", body=b"", length=None, headers=None) -> None:
        if error:
            body = f"<Error><Code>{error}</Code><Message>m</Message></Error>".encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length not in {None, len(body)}:
            self.close_connection = True

    def log_message(self, *arguments):
        """Keep the test's output clean."""


@pytest.fixture
def behaviour():
    return Behaviour()


@pytest.fixture
def endpoint(behaviour):
    handler = type("Handler", (Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def location(endpoint: str) -> S3Location:
    return S3Location(bucket="bucket", endpoint=endpoint, access_key="key", secret_key="hidden")


@pytest.fixture
def store(endpoint, monkeypatch):
    monkeypatch.setattr(object_store, "_CONFLICT_PAUSES_S", (0.0, 0.0))
    return connect(location(endpoint))


@pytest.fixture
def impatient(endpoint):
    """A store whose client waits half a second and tries once."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="hidden",
        config=Config(
            read_timeout=0.5,
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )
    return S3Store(client, bucket="bucket")


def test_server_that_overwrites_is_refused_before_anything_depends_on_it(store, behaviour):
    behaviour.overwrites = True

    with pytest.raises(StoreUnavailable, match="the store replaced 'probes/write-once'") as caught:
        require_write_once(store)

    assert "SeaweedFS" in caught.value.hint


def test_server_that_says_it_refused_and_overwrites_is_refused(store, behaviour):
    store.put_once("probes/write-once", b"before")
    behaviour.faults.extend(["overwrite and deny it"] * 2)

    with pytest.raises(StoreUnavailable, match="the store replaced"):
        require_write_once(store)


def test_honest_stub_passes_the_probe(store):
    require_write_once(store)


def test_server_without_conditional_writes_is_named(store, behaviour):
    behaviour.faults.append("501 NotImplemented")

    with pytest.raises(StoreUnavailable, match="NotImplemented") as caught:
        store.put_once("a", b"x")

    assert "conditional writes" in caught.value.hint


def test_write_whose_answer_got_lost_is_repeated_and_the_object_is_there(store, behaviour):
    behaviour.faults.append("lose the answer")

    wrote = store.put_once("a", b"mine")

    # False is right: the repeated request met an object, and nobody may count two winners
    assert not wrote
    assert store.get("a") == b"mine"
    assert behaviour.requests == 3


def test_busy_server_is_asked_again(store, behaviour):
    behaviour.faults.append("503 SlowDown")

    assert store.put_once("a", b"x")
    assert behaviour.requests == 2


def test_conflict_with_a_write_under_way_is_asked_again_until_it_is_decided(store, behaviour):
    behaviour.faults.extend(["409 ConditionalRequestConflict"] * 2)

    assert store.put_once("a", b"x")

    behaviour.faults.append("409 ConditionalRequestConflict")
    assert not store.put_once("a", b"y")
    assert store.get("a") == b"x"


def test_conflict_that_never_ends_is_unavailable_and_not_a_lost_race(store, behaviour):
    behaviour.faults.extend(["409 ConditionalRequestConflict"] * 3)

    with pytest.raises(StoreUnavailable, match="ConditionalRequestConflict"):
        store.put_once("a", b"x")

    assert behaviour.objects == {}


@pytest.mark.parametrize("call", ["get", "put", "list"])
def test_server_that_does_not_answer_in_time_is_unavailable(impatient, behaviour, call):
    behaviour.faults.append("hang")
    calls = {
        "get": lambda: impatient.get("a"),
        "put": lambda: impatient.put_once("a", b"x"),
        "list": lambda: impatient.list("a"),
    }

    with pytest.raises(StoreUnavailable, match="ReadTimeoutError") as caught:
        calls[call]()

    assert caught.value.retryable
    assert "check its address" in caught.value.hint


def test_no_server_at_all_is_unavailable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = connect(location(f"http://127.0.0.1:{free.getsockname()[1]}"))

        with pytest.raises(StoreUnavailable, match="EndpointConnectionError") as caught:
            gone.get("a")

    assert "check its address" in caught.value.hint


def test_body_with_a_flipped_bit_is_corrupt(store, behaviour):
    store.put_once("a", b"right")
    behaviour.spoils = lambda data: data[:-1] + b"T"

    with pytest.raises(ObjectCorrupt, match="'a'"):
        store.get("a")


def test_body_with_a_flipped_bit_is_corrupt_by_metadata_alone(store, behaviour):
    store.put_once("a", b"right")
    [(path, (data, headers))] = behaviour.objects.items()
    del headers["x-amz-checksum-sha256"]
    behaviour.objects[path] = (data[:-1] + b"T", headers)

    with pytest.raises(ObjectCorrupt, match="another sha-256"):
        store.get("a")


def test_body_that_breaks_off_is_unavailable_and_may_be_asked_for_again(store, behaviour):
    store.put_once("a", b"right" * 1000)
    behaviour.spoils = lambda data: data[:100]

    with pytest.raises(StoreUnavailable):
        store.get("a")

    behaviour.spoils = bytes
    assert store.get("a") == b"right" * 1000


def test_server_that_loses_checksums_is_not_trusted(store, behaviour):
    behaviour.keeps_checksums = False
    store.put_once("a", b"x")

    with pytest.raises(ObjectCorrupt, match="has lost its sha-256"):
        store.get("a")
    with pytest.raises(ObjectCorrupt):
        require_write_once(store)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ("404 NoSuchBucket", "make the bucket"),
        ("403 AccessDenied", "check access key"),
        ("403 InvalidAccessKeyId", "check access key"),
        ("400 SomethingElse", "server's log"),
    ],
)
def test_refusals_of_the_server_come_with_a_remedy(store, behaviour, fault, hint):
    behaviour.faults.append(fault)

    with pytest.raises(StoreUnavailable, match=f"cannot read 'a' .*{fault.split()[1]}") as caught:
        store.get("a")

    assert hint in caught.value.hint
    assert "hidden" not in str(caught.value)


def test_missing_object_is_not_taken_for_a_missing_bucket(store):
    with pytest.raises(ObjectMissing):
        store.get("a")


def test_bucket_that_may_not_be_looked_at_is_unavailable(store, behaviour):
    behaviour.faults.append("403 Forbidden")

    with pytest.raises(StoreUnavailable, match="403"):
        ensure_bucket(store)


def test_impossible_bucket_name_is_told(endpoint):
    with pytest.raises(StoreUnavailable, match="ParamValidationError") as caught:
        connect(S3Location(bucket="no such name!", endpoint=endpoint)).get("a")

    assert "FEDLOOM_STORE" in caught.value.hint


def test_address_that_is_no_url_is_told():
    with pytest.raises(StoreUnavailable, match="is no URL"):
        connect(S3Location(bucket="bucket", endpoint="127.0.0.1"))


def test_broken_configuration_of_boto3_is_told(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")

    with pytest.raises(StoreUnavailable, match="no-such-profile") as caught:
        connect(S3Location(bucket="bucket", endpoint="http://127.0.0.1:9"))

    assert "AWS_PROFILE" in caught.value.hint
