"""What a site's client says when the gateway does not answer as it should."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from fl_core.errors import StoreUnavailable
from fl_core.updates.signing import generate_key, public_hex, write_key
from tasks.certificates import make_certificate
from tasks.gateway_access import GatewayAccess, SiteDoor
from tasks.gateway_client import detail_of, no_answer, refusal, seconds_behind, skew_text
from tasks.gateway_identity import identity_stamp, read_identity
from tasks.request_token import BODY_SHA256, SignedRequest, is_signed, parse_authorization

URL = "https://fl.example.org:8443"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def door_of(home: Path, *, url: str = URL, identify: str = "certificate", pinned: bool = True):
    access = GatewayAccess.model_validate(
        {"url": url, "identify": identify, "certificate": "gateway.crt" if pinned else None}
    )
    return SiteDoor(site="north", home=home, access=access)


@pytest.fixture
def home(tmp_path):
    make_certificate(tmp_path / "tls.crt", tmp_path / "tls.key", common_name="north")
    make_certificate(
        tmp_path / "gateway.crt", tmp_path / "other", common_name="gateway", hosts=("localhost",)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
            "somebody else answers",
            "compare the fingerprint",
        ),
        (
            httpx.ReadError("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)"),
            "does not know this site's certificate",
            "give enrol.json",
        ),
        (
            httpx.ReadError("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] ssl alert certificate expired"),
            "alert certificate expired",
            "a wrong clock",
        ),
        (httpx.ConnectTimeout("timed out"), "does not answer", "firewall's rule"),
        (httpx.ConnectError("[Errno 111] refused"), "does not answer", "outgoing firewall"),
        (httpx.ProxyError("407"), "does not answer", "HTTPS_PROXY"),
        (httpx.RemoteProtocolError("closed"), "does not answer", "tried again"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else None,
)
def test_cause_is_named_with_its_remedy(home, error, said, hint):
    refused = no_answer(door_of(home), error)

    assert said in str(refused)
    assert URL in str(refused)
    assert hint in refused.hint


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "not enrolled"), (403, "revoked"), (409, "versions"), (500, "record")],
)
def test_refusal_names_what_and_what_to_do(home, status, hint):
    refused = refusal(door_of(home), status, "one line", what="say hello")

    assert str(refused) == f"the gateway at {URL} refuses to say hello: one line"
    assert hint in refused.hint


def test_site_whose_keys_are_changing_is_told_to_finish(home):
    (home / "rotation.json").touch()
    alert = httpx.ReadError("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca")

    hints = {
        no_answer(door_of(home), alert).hint,
        refusal(door_of(home), 401, "unknown", what="list").hint,
    }

    assert hints == {"a change of keys is pending here: run `fedloom site rotate --finish`"}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"detail": "not for\\nthis site"}', "not for this site"),
        (b'{"detail": "\\u001b[31mred"}', "[31mred"),
        (b'{"detail": "' + b"x" * 999 + b'"}', "x" * 300),
        (b'{"detail": ""}', "status 403"),
        (b"<html>", "status 403"),
        (b"[]", "status 403"),
    ],
    ids=["lines", "terminal", "long", "empty", "html", "list"],
)
def test_detail_is_one_printable_line(body, detail):
    assert detail_of(httpx.Response(403, content=body)) == detail


@pytest.mark.parametrize(
    ("date", "behind_s"),
    [
        ("Sun, 01 Mar 2026 13:00:00 GMT", 3600.0),
        ("Sun, 01 Mar 2026 11:59:00 GMT", -60.0),
        ("yesterday", None),
        (None, None),
    ],
)
def test_clock_is_compared_with_the_gateways(date, behind_s):
    response = httpx.Response(200, headers={} if date is None else {"date": date})

    assert seconds_behind(response, now=NOW) == behind_s


def test_wrong_clock_is_told_with_direction():
    assert "3600 s behind the gateway's" in skew_text(3600)
    assert "90 s ahead of the gateway's" in skew_text(-90)


def test_plain_http_is_refused_but_on_this_machine_with_signed_requests(home):
    write_key(generate_key(), home / "key.pem")

    for url, identify in (
        ("http://fl.example.org", "token"),
        ("http://127.0.0.1:80", "certificate"),
        ("http://127.0.0.1.example.org", "token"),
    ):
        with pytest.raises(StoreUnavailable, match="is not https"):
            read_identity(door_of(home, url=url, identify=identify))

    assert read_identity(door_of(home, url="http://127.0.0.1:80", identify="token")).is_local


def test_absent_certificates_are_named(tmp_path):
    with pytest.raises(StoreUnavailable, match="cannot be used") as caught:
        read_identity(door_of(tmp_path))

    assert "fedloom site rotate" in caught.value.hint


def test_host_name_counts_only_where_public_authorities_do(home):
    pinned = read_identity(door_of(home)).verify
    public = read_identity(door_of(home, pinned=False)).verify

    assert not pinned.check_hostname
    assert [each["serialNumber"] for each in pinned.get_ca_certs()]
    assert len(pinned.get_ca_certs()) == 1
    assert public.check_hostname


def test_token_is_signed_over_everything_and_never_twice_the_same(home):
    key = generate_key()
    write_key(key, home / "key.pem")
    identity = read_identity(door_of(home, identify="token"))

    headers = [identity.headers("GET", "/store/keys?prefix=a%2F", b"") for _ in range(2)]
    tokens = [parse_authorization(each["Authorization"]) for each in headers]

    assert tokens[0].nonce != tokens[1].nonce
    for token in tokens:
        request = SignedRequest(
            url=URL,
            site="north",
            method="GET",
            target="/store/keys?prefix=a%2F",
            body_sha256=EMPTY_SHA256,
            expires=token.expires,
            nonce=token.nonce,
        )
        assert is_signed(request, token.signature, public_hex=public_hex(key))


def test_body_travels_with_its_hash_and_a_read_without(home):
    identity = read_identity(door_of(home))

    assert identity.headers("GET", "/store/keys", b"") == {}
    # SHA-256 of b"abc", FIPS 180-2 appendix B.1.
    assert identity.headers("PUT", "/x", b"abc")[BODY_SHA256].startswith("ba7816bf")
    assert identity.headers("PUT", "/x", b"")[BODY_SHA256] == EMPTY_SHA256


def test_rotated_certificate_changes_the_stamp(home):
    door = door_of(home)
    before = identity_stamp(door)

    make_certificate(home / "tls.crt", home / "tls.key", common_name="north")

    assert identity_stamp(door) != before
