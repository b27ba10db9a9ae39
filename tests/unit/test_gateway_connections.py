"""The gateway's TLS context: what it trusts, and that nothing is let in by an older handshake."""

import ssl

import pytest

from flows.gateway.connections import Places, server_context, trust
from tasks.certificates import make_certificate


@pytest.fixture
def made(tmp_path):
    def make(name, hosts=()):
        folder = tmp_path / name
        return make_certificate(
            folder / "tls.crt", folder / "tls.key", common_name=name, hosts=hosts
        )

    return make


@pytest.fixture
def context(tmp_path, made):
    made("gateway", hosts=["127.0.0.1"])
    folder = tmp_path / "gateway"
    return server_context(folder / "tls.crt", folder / "tls.key", on_refused=lambda _: None)


def test_new_context_trusts_nobody(context):
    assert context.get_ca_certs() == []
    assert context.verify_mode == ssl.CERT_OPTIONAL


def test_context_trusts_what_it_was_given_and_each_once(context, made):
    north, south = made("north"), made("south")

    trust(context, [north])
    trust(context, [north, south])

    names = {dict(found["subject"][0])["commonName"] for found in context.get_ca_certs()}
    assert names == {"north", "south"}
    assert len(context.get_ca_certs()) == 2


def test_certificate_that_is_none_shuts_out_nobody_else(context, made):
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

    trust(context, [broken, made("north")])

    assert len(context.get_ca_certs()) == 1


def test_old_protocols_and_resumed_sessions_are_switched_off(context):
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_one_address_takes_no_places_of_another_and_strangers_none_of_sites():
    places = Places(of_one=2, of_strangers=3)

    one = [places.take("192.0.2.1", is_stranger=True) for _ in range(3)]
    two = [places.take("192.0.2.2", is_stranger=True) for _ in range(2)]
    site = [places.take("certificate", is_stranger=False) for _ in range(3)]

    assert (one, two, site) == ([True, True, False], [True, False], [True, True, False])


def test_place_that_was_given_back_is_taken_again():
    places = Places(of_one=1, of_strangers=1)
    places.take("192.0.2.1", is_stranger=True)

    places.give_back("192.0.2.1", is_stranger=True)

    assert places.take("192.0.2.2", is_stranger=True)
