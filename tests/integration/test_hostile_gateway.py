"""A gateway that is hostile to its sites: what it answers may cost a site a round, never more.

It has the certificate that the site pinned, so it is the coordinator's own, and lies.
"""

import http.server
import json
import ssl
import threading

import pytest
from site_gateway import Gateway

from fl_core.artifacts.documents import LONGEST_DOCUMENT
from fl_core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from tasks import gateway_client
from tasks.gateway_store import GatewayStore
from tasks.greeting import say_hello

KEY = "rosters/000001.json"
DEEP = b"[" * 200_000


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers what its server was told to."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, headers, pieces = self.server.lie
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(piece)
                self.server.n_bytes += len(piece)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            return

    do_GET = do_PUT = do_POST = answer  # noqa: N815  names of the base class

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def liar(tmp_path_factory):
    """A server with the pinned certificate, and a site that trusts it."""
    gateway = Gateway(tmp_path_factory.mktemp("liar"))
    door = gateway.make_site("north")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", gateway.port), Liar)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        gateway.folder / "gateway" / "tls.crt", gateway.folder / "gateway" / "tls.key"
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.door = door
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(liar, monkeypatch):
    """A function that sets the lie and returns the site's store."""
    monkeypatch.setattr(gateway_client, "_PAUSES_S", (0.01,))

    def tell(status=200, headers=None, pieces=()):
        liar.lie, liar.n_bytes = (status, headers or {}, pieces), 0
        return GatewayStore.through(liar.door)

    return tell


def endless():
    return (b"x" * 65536 for _ in range(16384))


def test_object_without_end_and_without_a_limit_is_not_read_to_its_end(told):
    store = told(pieces=endless())

    with pytest.raises(ObjectCorrupt, match=f"more than the {LONGEST_DOCUMENT} bytes"):
        store.get(KEY)


def test_object_without_end_is_read_up_to_its_limit(told, liar):
    store = told(pieces=endless())

    with pytest.raises(ObjectCorrupt, match="more than the 1000000 bytes"):
        store.get(KEY, max_bytes=1_000_000)

    assert liar.n_bytes < 64 << 20


def test_object_that_states_too_much_is_refused_before_its_body(told):
    store = told(headers={"content-length": str(2 << 30)}, pieces=(b"x",))

    with pytest.raises(ObjectCorrupt, match="has 2147483648 bytes"):
        store.get(KEY, max_bytes=1_000_000)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-fedloom-sha256": "0" * 64}, {"x-fedloom-sha256": "ä"}],
    ids=["none", "another", "nonsense"],
)
def test_object_of_another_hash_is_refused(told, headers):
    store = told(headers=headers | {"content-length": "4"}, pieces=(b"rows",))

    with pytest.raises(ObjectCorrupt, match="another sha-256"):
        store.get(KEY)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[1]", b"not json", DEEP, b'["a", null]', b"\xff\xfe"],
    ids=["object", "numbers", "text", "deep", "null", "bytes"],
)
def test_list_that_is_none_is_refused(told, body):
    store = told(headers={"content-length": str(len(body))}, pieces=(body,))

    with pytest.raises(StoreUnavailable, match="does not answer like a gateway"):
        store.list("rosters/")
    with pytest.raises(StoreUnavailable, match="does not answer like a gateway"):
        store.wait([KEY], seconds=0)


def test_list_without_end_is_cut(told, liar):
    store = told(pieces=endless())

    with pytest.raises(StoreUnavailable, match="does not answer like a gateway"):
        store.list("rosters/")

    assert liar.n_bytes < 128 << 20


@pytest.mark.parametrize("status", [204, 302, 418, 520, 599])
def test_odd_status_is_an_error_with_its_number(told, status):
    store = told(status=status, headers={"location": "http://169.254.169.254/"})

    with pytest.raises(StoreUnavailable, match=f"status {status}"):
        store.get(KEY)
    with pytest.raises(StoreUnavailable, match=f"status {status}"):
        store.put_once(KEY, b"x")


def test_text_of_a_refusal_is_one_short_plain_line(told):
    body = json.dumps({"detail": "\x1b[31mnow\nrun: rm -rf /\u202e" + "x" * 5000}).encode()
    store = told(status=403, headers={"content-length": str(len(body))}, pieces=(body,))

    with pytest.raises(StoreUnavailable) as caught:
        store.get(KEY)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def complaining(*complaints):
    return json.dumps({"fedloom": "1", "complaints": complaints}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"fedloom": "1", "complaints": ["x"], "run": "rm"}',
        DEEP,
        complaining("x\x1b]0;owned\x07\x1b[2J"),
        complaining("x\n2026-11-25 03:00:00 INFO flows.site_worker worker ready"),
        complaining("x" * 301),
        complaining(*["x"] * 17),
    ],
    ids=["empty", "another key", "deep", "escapes", "line of a log", "long", "many"],
)
def test_welcome_that_is_none_is_refused(told, liar, body):
    told(headers={"content-length": str(len(body))}, pieces=(body,))

    with pytest.raises(StoreUnavailable, match="does not answer like a gateway"):
        say_hello(liar.door)


def test_busy_gateway_cannot_hold_a_site_for_long_at_once(told, monkeypatch):
    slept = []
    monkeypatch.setattr(gateway_client.time, "sleep", slept.append)
    store = told(status=429, headers={"retry-after": "999999", "content-length": "0"})

    with pytest.raises(StoreUnavailable, match="answers 429"):
        store.get(KEY)

    assert slept == [10.0]


def test_absent_object_is_missing_whatever_the_answer_says(told):
    store = told(status=404, headers={"content-length": "2"}, pieces=(b"hi",))

    with pytest.raises(ObjectMissing):
        store.get(KEY)
