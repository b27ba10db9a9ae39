"""Self-signed certificates: who is recognised by them, and by what."""

import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fl_core.errors import CampaignError
from tasks.certificates import (
    certificate_sha256,
    make_certificate,
    require_site_certificate,
    valid_until,
)


def made(folder, name, *, hosts=()):
    folder.mkdir()
    make_certificate(folder / "x.crt", folder / "x.key", common_name=name, hosts=hosts)
    return folder / "x.crt", folder / "x.key"


def shaken(server, client, *, trusted):
    """Have a client with a certificate greet a server that trusts some; return who was seen."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*server)
    server_side.verify_mode = ssl.CERT_REQUIRED
    for path, _ in trusted:
        server_side.load_verify_locations(path)
    client_side = ssl.create_default_context(cafile=server[0])
    client_side.load_cert_chain(*client)
    for side in (server_side, client_side):
        # The default of Python 3.13's ssl.create_default_context.
        side.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client_side.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server_side.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].getpeercert(binary_form=True)


def test_two_certificates_of_one_name_are_both_recognised(tmp_path):
    server = made(tmp_path / "server", "fedloom-gateway", hosts=("127.0.0.1",))
    before, after = made(tmp_path / "before", "north"), made(tmp_path / "after", "north")

    seen = [shaken(server, each, trusted=(before, after)) for each in (before, after)]

    # As after a change of keys: the roster holds the old one and the new one.
    assert [ssl.DER_cert_to_PEM_cert(der) for der in seen] == [
        each[0].read_text() for each in (before, after)
    ]


def test_certificate_of_the_right_name_that_nobody_trusts_is_refused(tmp_path):
    server = made(tmp_path / "server", "fedloom-gateway", hosts=("127.0.0.1",))
    known, stranger = made(tmp_path / "known", "north"), made(tmp_path / "stranger", "north")

    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server, stranger, trusted=(known,))


def test_key_is_its_owners_alone_and_the_hash_is_that_of_the_connection(tmp_path):
    path, key_path = made(tmp_path / "site", "north")

    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    assert certificate_sha256(path.read_text()) == hashlib.sha256(der).hexdigest()


def test_certificate_holds_for_ten_years_and_for_a_clock_that_is_an_hour_behind(tmp_path):
    path, _ = made(tmp_path / "site", "north")

    left = valid_until(path.read_text()) - datetime.now(UTC)

    # 3,653 days are ten years with their leap days.
    assert timedelta(days=3652) < left <= timedelta(days=3653)


@pytest.mark.parametrize("text", ["", "north", "-----BEGIN CERTIFICATE-----\nAAAA\n", "x" * 5000])
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(CampaignError, match="not one PEM certificate"):
        certificate_sha256(text)


def crafted(folder, *, name, key_number):
    """Make a self-signed certificate of a site's own key that states what it likes."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    if key_number is not None:
        builder = builder.add_extension(key_number, critical=False)
    folder.mkdir()
    path = folder / "x.crt"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return path


def number_of(path):
    stated = x509.load_pem_x509_certificate(path.read_bytes()).extensions
    return stated.get_extension_for_class(x509.SubjectKeyIdentifier).value


@pytest.mark.parametrize("is_numbered", [False, True], ids=["no-number", "numbers-of-north"])
def test_certificate_that_would_take_anothers_place_in_a_handshake_is_refused(
    tmp_path, is_numbered
):
    server = made(tmp_path / "server", "fedloom-gateway", hosts=("127.0.0.1",))
    north = made(tmp_path / "north", "north")
    number = number_of(north[0]) if is_numbered else None
    evil = crafted(tmp_path / "evil", name="north", key_number=number)

    # OpenSSL takes the first of this name for the issuer of the second.
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server, north, trusted=((evil, None), north))

    for site in ("evil", "north"):
        with pytest.raises(CampaignError, match="another name or another key's identifier"):
            require_site_certificate(evil.read_text(), site=site)
    require_site_certificate(north[0].read_text(), site="north")
    with pytest.raises(CampaignError, match="another name"):
        require_site_certificate(north[0].read_text(), site="south")
