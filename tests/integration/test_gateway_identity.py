"""Who gets in: certificates, tokens, revocation; and what a flood or a giant gets."""

import secrets
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime

import httpx
import pytest
from gateway_stack import hashed

from fl_core.campaign.roster import revoke
from fl_core.updates.signing import generate_key
from tasks.certificates import make_certificate
from tasks.request_token import authorization
from tests.signed_copies import copy_at

ROSTER = "/store/objects/rosters/000001.json"


def test_site_with_its_certificate_is_let_in_and_named_in_the_record(gateway):
    with gateway.client("north") as client:
        answer = client.get(ROSTER)

    assert answer.status_code == 200
    assert gateway.recorded(site="north", by="certificate", path=ROSTER, status=200)


@pytest.mark.parametrize("path", ["/store/keys?prefix=rosters/", ROSTER, "/api/health", "/nowhere"])
def test_stranger_without_a_certificate_gets_nothing(gateway, path):
    with gateway.stranger() as client:
        answer = client.get(path)

    assert answer.status_code == 401
    assert "fedloom enrol" in answer.json()["detail"]
    assert gateway.recorded(path=path.partition("?")[0], status=401)


def test_everybody_may_ask_whether_the_gateway_is_there(gateway):
    with gateway.stranger() as client:
        answer = client.get("/health")

    assert answer.status_code == 200
    assert answer.json().keys() == {"fedloom"}


def test_certificate_that_nobody_enrolled_ends_the_handshake(gateway, tmp_path):
    make_certificate(tmp_path / "tls.crt", tmp_path / "tls.key", common_name="north")
    context = ssl.create_default_context(cafile=gateway.certificate)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")

    with (
        httpx.Client(base_url=gateway.url, verify=context) as client,
        pytest.raises(httpx.TransportError, match="UNKNOWN_CA"),
    ):
        client.get(ROSTER)

    assert gateway.recorded(method="TLS", status=0)


def test_certificate_that_a_site_signed_for_somebody_else_is_not_the_sites(gateway, tmp_path):
    # A site's certificate is its own authority, so the handshake alone would let this one in.
    own, key = gateway.sites["north"].home / "tls.crt", gateway.sites["north"].home / "tls.key"
    made = f"""
        openssl ecparam -genkey -name prime256v1 -noout -out {tmp_path}/leaf.key
        openssl req -new -key {tmp_path}/leaf.key -subj /CN=south -out {tmp_path}/leaf.csr
        openssl x509 -req -in {tmp_path}/leaf.csr -CA {own} -CAkey {key} -set_serial 7 \
            -out {tmp_path}/leaf.crt
    """
    subprocess.run(["sh", "-ec", made], check=True, capture_output=True)
    (tmp_path / "chain.crt").write_text((tmp_path / "leaf.crt").read_text() + own.read_text())
    context = ssl.create_default_context(cafile=gateway.certificate)
    context.load_cert_chain(tmp_path / "chain.crt", tmp_path / "leaf.key")

    with httpx.Client(base_url=gateway.url, verify=context) as client:
        answer = client.get(ROSTER)

    assert answer.status_code == 401


def test_site_that_is_enrolled_while_the_gateway_runs_is_let_in(gateway):
    gateway.sites["late"] = gateway.enrolled("late")

    # The handshake trusts a new roster's certificates within a second.
    deadline = time.monotonic() + 30
    while True:
        try:
            with gateway.client("late") as client:
                status = client.get(ROSTER).status_code
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            break

    assert status == 200


def test_revoked_site_is_refused_at_its_next_request_on_the_open_connection(gateway):
    gateway.sites["gone"] = gateway.enrolled("gone")
    key = "witness/gone/data/row/{:06d}.json"
    deadline = time.monotonic() + 30
    while True:
        client = gateway.client("gone")
        try:
            client.get(ROSTER)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            break

    def write(number: int) -> httpx.Response:
        path = "/store/objects/" + key.format(number)
        copy = copy_at(key.format(number), gateway.sites["gone"].key)
        return client.put(path, content=copy, headers=hashed(copy))

    before = write(1)
    revoke(gateway.store, "gone", now=datetime.now(UTC), reason="a test")
    after, read = write(2), client.get(ROSTER)

    assert [before.status_code, after.status_code, read.status_code] == [201, 403, 403]
    assert "revoked" in after.json()["detail"]
    assert gateway.store.list("witness/gone/") == [key.format(1)]
    assert gateway.recorded(method="PUT", status=403, detail=after.json()["detail"])


def test_token_of_a_site_lets_its_request_in_without_a_certificate(gateway):
    key = f"witness/north/data-{secrets.token_hex(4)}/row/000001.json"
    target, body = f"/store/objects/{key}", copy_at(key, gateway.sites["north"].key)
    headers = gateway.token("north", gateway.signed("north", "PUT", target, body))

    with gateway.stranger() as client:
        answer = client.put(target, content=body, headers=headers)

    assert answer.status_code == 201
    assert gateway.recorded(site="north", by="token", path=target, status=201)


def test_token_counts_once(gateway):
    headers = gateway.token("north", gateway.signed("north", "GET", ROSTER))

    with gateway.stranger() as client:
        first, second = client.get(ROSTER, headers=headers), client.get(ROSTER, headers=headers)

    assert (first.status_code, second.status_code) == (200, 401)
    assert "used before" in second.json()["detail"]
    assert gateway.recorded(path=ROSTER, status=401, detail=second.json()["detail"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expires": int(time.time()) - 3600}, "clock"),
        ({"expires": int(time.time()) + 86400}, "clock"),
        ({"target": "/store/objects/rosters/000002.json"}, "another request"),
        ({"method": "PUT"}, "another request"),
        ({"body_sha256": "0" * 64}, "another request"),
        ({"url": "https://another.gateway:8443"}, "another request"),
        ({"site": "nobody"}, "enrolled"),
        ({"site": "south"}, "another key"),
    ],
    ids=["ended", "ends tomorrow", "path", "method", "body", "gateway", "unknown", "other site"],
)
def test_token_for_anything_else_lets_nothing_in(gateway, change, said):
    headers = gateway.token("north", gateway.signed("north", "GET", ROSTER), **change)

    with gateway.stranger() as client:
        answer = client.get(ROSTER, headers=headers)

    assert answer.status_code == 401
    assert said in answer.json()["detail"]


def test_signing_key_opens_nothing_for_a_site_that_shows_a_certificate(gateway):
    gateway.sites["shown"] = gateway.enrolled("shown", identify="certificate")
    headers = gateway.token("shown", gateway.signed("shown", "GET", ROSTER))
    deadline = time.monotonic() + 30
    while "no site is enrolled" in (detail := asked(gateway, headers)):
        assert time.monotonic() < deadline
        time.sleep(0.3)
        headers = gateway.token("shown", gateway.signed("shown", "GET", ROSTER))

    assert "enrolled to show its certificate" in detail
    assert gateway.recorded(path=ROSTER, status=401, detail=detail)


def asked(gateway, headers):
    with gateway.stranger() as client:
        answer = client.get(ROSTER, headers=headers)
    assert answer.status_code == 401
    return answer.json()["detail"]


def test_token_does_not_cover_another_body_than_the_signed_one(gateway):
    target = "/store/objects/witness/north/data/row/000888.json"
    headers = gateway.token("north", gateway.signed("north", "PUT", target, b"signed"))

    with gateway.stranger() as client:
        answer = client.put(target, content=b"other!", headers=headers)

    assert answer.status_code == 422
    assert gateway.store.list(target.removeprefix("/store/objects/")) == []


def test_token_of_a_key_that_is_not_enrolled_lets_nothing_in(gateway):
    request = gateway.signed("north", "GET", ROSTER)

    with gateway.stranger() as client:
        headers = {"Authorization": authorization(request, generate_key())}
        answer = client.get(ROSTER, headers=headers)

    assert answer.status_code == 401


def connected(gateway, site: str) -> ssl.SSLSocket:
    """Open a connection as a site, to be spoken to by hand."""
    context = gateway.sites[site].context(gateway.certificate)
    port = int(gateway.url.rpartition(":")[2])
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_flood_of_one_site_is_cut_off_and_another_site_goes_on(gateway):
    request = b"GET /store/wait?key=x HTTP/1.1\r\nHost: gateway\r\n\r\n"
    answers = b""
    with connected(gateway, "south") as flooding:
        # One after the other without waiting for an answer, faster than any client would.
        sender = threading.Thread(target=flooding.sendall, args=(request * 1500,))
        sender.start()
        while b"retry-after: " not in answers:
            answers += flooding.recv(1 << 20)
        sender.join()
    with gateway.client("north") as other:
        calm = other.get(ROSTER)

    first = answers.partition(b"HTTP/1.1 429 ")[2].partition(b"\r\n\r\n")[0]
    assert b"retry-after: " in first
    assert calm.status_code == 200
    assert gateway.recorded(site="south", status=429)


def announce(gateway, headers: str) -> bytes:
    """Send the head of an upload and nothing of its body; return what the gateway says."""
    with connected(gateway, "north") as secured:
        path = "/store/objects/witness/north/data/row/000999.json"
        secured.sendall(f"PUT {path} HTTP/1.1\r\nHost: gateway\r\n{headers}\r\n".encode())
        answer = b""
        while chunk := secured.recv(4096):
            answer += chunk
        return answer


def test_two_gigabytes_are_refused_before_any_of_them_is_read(gateway):
    digest = "0" * 64
    answer = announce(gateway, f"Content-Length: {2 << 30}\r\nx-fedloom-sha256: {digest}\r\n")

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert gateway.recorded(site="north", status=413, received=0)


def test_header_longer_than_any_honest_one_is_refused(gateway):
    # Over the limit and not at its end; bytes left unread would take the answer along.
    with connected(gateway, "north") as secured:
        secured.sendall(b"GET /hello HTTP/1.1\r\nx-long: " + b"a" * (16 << 10))
        answer = secured.recv(4096)

    assert answer.startswith(b"HTTP/1.1 400 ")


def test_websocket_is_not_opened(gateway):
    with gateway.client("north") as client:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        answer = client.get("/api/events/out", headers=upgrade)

    assert answer.status_code == 403
