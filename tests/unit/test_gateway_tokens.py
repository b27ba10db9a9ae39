"""A signed request: what its signature covers, and which headers are none."""

from dataclasses import replace

import pytest

from fl_core.updates.signing import generate_key, public_hex
from tasks.request_token import SignedRequest, authorization, is_signed, parse_authorization

KEY = generate_key()
REQUEST = SignedRequest(
    url="https://Gateway.example:8443/",
    site="north",
    method="PUT",
    target="/store/objects/a/b.json?x=1",
    body_sha256="ab" * 32,
    expires=1_800_000_000,
    nonce="0f" * 16,
)
OTHER = {
    "url": "https://other.example:8443",
    "site": "south",
    "method": "GET",
    "target": "/store/objects/a/b.json?x=2",
    "body_sha256": "ac" * 32,
    "expires": 1_800_000_001,
    "nonce": "0e" * 16,
}


def test_signed_text_is_the_lines_of_the_protocol():
    # The lines as docs/gateway.md gives them to whoever writes another client.
    assert REQUEST.text() == "\n".join(
        [
            "fedloom-request-1",
            "https://gateway.example:8443",
            "north",
            "PUT",
            "/store/objects/a/b.json?x=1",
            "ab" * 32,
            "1800000000",
            "0f" * 16,
        ]
    )


def test_header_comes_back_and_its_signature_holds():
    token = parse_authorization(authorization(REQUEST, KEY))

    assert token is not None
    assert (token.site, token.expires, token.nonce) == ("north", 1_800_000_000, "0f" * 16)
    assert is_signed(REQUEST, token.signature, public_hex=public_hex(KEY))


@pytest.mark.parametrize("field", OTHER)
def test_signature_of_one_request_is_none_of_another(field):
    token = parse_authorization(authorization(REQUEST, KEY))
    assert token is not None

    changed = replace(REQUEST, **{field: OTHER[field]})

    assert not is_signed(changed, token.signature, public_hex=public_hex(KEY))


def test_signature_of_another_key_does_not_hold():
    token = parse_authorization(authorization(REQUEST, KEY))
    assert token is not None

    assert not is_signed(REQUEST, token.signature, public_hex=public_hex(generate_key()))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic bm9ydGg6cGFzcw==",
        "Fedloom site=north",
        authorization(REQUEST, KEY) + ",site=south",
        authorization(REQUEST, KEY).replace("north", "../north"),
        authorization(REQUEST, KEY).replace("expires=", "expires=-"),
        authorization(REQUEST, KEY) + "\n",
    ],
)
def test_header_of_another_form_is_no_token(header):
    assert parse_authorization(header) is None
