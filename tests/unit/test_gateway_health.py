"""The doctor on a site's way to its gateway, where something on that way is wrong.

A server of the test's own stands for the gateway here, since a real one has no wrong clock and
opens no other site's door; `tests/integration/test_doctor.py` asks a real one.
"""

import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time

import pytest

from flows.processes import free_port
from tasks import tls_health
from tasks.certificates import make_certificate
from tasks.gateway_access import GatewayAccess, SiteDoor
from tasks.gateway_health import gateway_checks
from tasks.tls_health import tls_checks

FITTING = {
    "/health": (200, {"fedloom": "0.1.0"}),
    "/hello": (200, {"fedloom": "0.1.0", "complaints": []}),
    "/store/keys": (200, ["rosters/000001.json"]),
    "/store/objects": (403, {"detail": "not yours"}),
}


def handler(answers, ahead_s):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, said = next(a for path, a in answers.items() if self.path.startswith(path))
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response_only(status)
            self.send_header("Date", formatdate(time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def log_message(self, *_):
            return

    return Handler


@pytest.fixture
def gateway(tmp_path):
    """A function that starts a gateway with given answers and returns a site's door to it."""
    running = []

    def begin(*, ahead_s=0.0, is_tls=True, **answers):
        stated = FITTING | {f"/{path.replace('__', '/')}": said for path, said in answers.items()}
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(stated, ahead_s))
        theirs, home = tmp_path / "gateway", tmp_path / "site"
        pem = make_certificate(
            theirs / "tls.crt", theirs / "tls.key", common_name="gateway", hosts=["127.0.0.1"]
        )
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(theirs / "tls.crt", theirs / "tls.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        make_certificate(home / "tls.crt", home / "tls.key", common_name="north")
        (home / "gateway.crt").write_text(pem)
        url = f"https://127.0.0.1:{server.server_port}"
        access = GatewayAccess(url=url, certificate="gateway.crt")
        return SiteDoor(site="north", home=home, access=access)

    yield begin
    for server in running:
        server.shutdown()
        server.server_close()


def failing(door):
    checks = list(gateway_checks(door))
    assert [check.name for check in checks if check.verdict == "fail"] == [checks[-1].name]
    return checks[-1]


def test_every_step_of_a_fitting_gateway_is_well(gateway):
    checks = list(gateway_checks(gateway()))

    assert {check.verdict for check in checks} == {"ok"}
    assert [check.name for check in checks] == [
        "way to the gateway",
        "gateway's certificate",
        "this site's certificate",
        "gateway",
        "clock",
        "enrolment and versions",
        "store",
        "store of another site",
    ]


def test_every_request_of_the_doctor_is_in_the_record_of_what_left(gateway):
    door = gateway()
    list(gateway_checks(door))

    lines = [json.loads(line) for line in (door.home / "outgoing.jsonl").read_text().splitlines()]

    paths = [line["path"] for line in lines if "path" in line]
    assert [path.partition("?")[0] for path in dict.fromkeys(paths)] == [
        "/health",
        "/hello",
        "/store/keys",
        "/store/objects/campaigns/doctor/rounds/0001/updates/not-north/manifest.json",
    ]
    assert "/hello?check=1" in paths


def test_port_that_nobody_listens_at_ends_the_look(gateway):
    door = gateway()
    url = f"https://127.0.0.1:{free_port()}"
    door = door.model_copy(update={"access": GatewayAccess(url=url, certificate="gateway.crt")})

    check = failing(door)

    assert check.name == "way to the gateway"
    assert "whether the gateway runs" in check.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (TimeoutError(), "outgoing tcp to 127.0.0.1 port"),
        (socket.gaierror(-2, "unknown"), "name server"),
    ],
    ids=["firewall", "name"],
)
def test_firewall_and_unknown_name_have_their_own_remedies(error, remedy, gateway, monkeypatch):
    def refuse(*_, **__):
        raise error

    door = gateway()
    monkeypatch.setattr(tls_health.socket, "create_connection", refuse)

    assert remedy in failing(door).remedy


def test_listener_without_tls_is_told(gateway):
    check = failing(gateway(is_tls=False))

    assert check.name == "gateway's certificate"
    assert "no TLS" in check.found


def test_another_certificate_than_the_pinned_one_is_found_before_anything_is_sent(gateway):
    door = gateway()
    make_certificate(door.home / "gateway.crt", door.home / "k", common_name="x", hosts=["a"])

    check = failing(door)

    assert check.name == "gateway's certificate"
    assert "by voice" in check.remedy
    assert not (door.home / "outgoing.jsonl").exists()


@pytest.mark.parametrize("name", ["gateway.crt", "tls.crt"])
def test_certificate_that_is_not_there_is_named(name, gateway):
    door = gateway()
    (door.home / name).unlink()

    assert name in failing(door).found


def test_certificate_without_a_key_of_its_own_does_not_pass(gateway):
    door = gateway()
    make_certificate(door.home / "other.crt", door.home / "tls.key", common_name="north")

    assert failing(door).name == "gateway"


@pytest.mark.parametrize(
    ("days", "verdicts"),
    [(100, {"ok"}), (10, {"ok", "warn"})],
    ids=["long", "soon"],
)
def test_last_month_of_a_certificate_is_a_warning(days, verdicts, gateway, monkeypatch):
    ends = datetime.now(UTC) + timedelta(days=days, hours=1)
    monkeypatch.setattr(tls_health, "valid_until", lambda _: ends)

    checks = list(tls_checks(gateway()))

    assert {check.verdict for check in checks} == verdicts
    assert f"{days} days left" in checks[1].found


def test_certificate_that_has_ended_fails(gateway, monkeypatch):
    ended = datetime.now(UTC) - timedelta(hours=1)
    monkeypatch.setattr(tls_health, "valid_until", lambda _: ended)

    assert failing(gateway()).name == "gateway's certificate"


# A minute is what the gateway's deadlines and signed requests bear (tasks/gateway_client.py).
@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0, "ok"), (20, "warn"), (-20, "warn"), (120, "fail"), (-120, "fail")]
)
def test_clock_is_held_against_the_gateways(ahead_s, verdict, gateway):
    checks = {check.name: check for check in gateway_checks(gateway(ahead_s=ahead_s))}

    assert checks["clock"].verdict == verdict
    assert ("NTP" in checks["clock"].remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("path", "answer", "name", "told"),
    [
        ("health", (200, b"<html>sign in</html>"), "gateway", "does not answer like a gateway"),
        ("health", (404, b"no such page"), "gateway", "404"),
        ("hello", (401, {"detail": "no site"}), "enrolment and versions", "no site"),
        ("hello", (403, {"detail": "revoked"}), "enrolment and versions", "revoked"),
        (
            "hello",
            (409, {"fedloom": "0.1.0", "complaints": ["site north has peft 0.1, expected 0.21"]}),
            "enrolment and versions",
            "peft 0.1",
        ),
        ("store__keys", (403, {"detail": "not yours"}), "store", "not yours"),
        ("store__objects", (404, {"detail": "absent"}), "store of another site", "404"),
        ("store__objects", (200, b"{}"), "store of another site", "200"),
    ],
    ids=["portal", "page", "stranger", "revoked", "versions", "keys", "absent", "open"],
)
def test_answer_that_does_not_fit_is_named_by_its_step(path, answer, name, told, gateway):
    door = gateway(**{path: answer})

    checks = {check.name: check for check in gateway_checks(door)}

    assert checks[name].verdict == "fail"
    assert told in checks[name].found


def test_proxy_of_the_environment_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:hunter2@proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    access = GatewayAccess(url="https://gateway.example:8443", identify="token")

    checks = list(tls_checks(SiteDoor(site="north", home=tmp_path, access=access)))

    assert [(check.verdict, check.found) for check in checks] == [
        ("ok", "through the proxy proxy.example:3128")
    ]
