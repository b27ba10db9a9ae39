"""The certificates of the gateway and of the sites: self-signed, pinned, made here.

No authority stands between a site and its coordinator. A site's certificate is in the roster with
its signing key, and the gateway trusts exactly those; the gateway's certificate is in the file
that a site's operator was given. So nobody who can have a certificate signed somewhere can stand
in for either, and nothing expires in the middle of a year's rounds: keys are rotated, not renewed.

The key of TLS is another one than the signing key: what opens a connection signs no update.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_core.artifacts.replacing import replace_file
from fl_core.errors import CampaignError

_VALID = timedelta(days=3653)
# A clock that is an hour behind must still accept a certificate of now.
_BACKDATED = timedelta(days=1)
_MAX_PEM_BYTES = 4096
_SIGNS = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def make_certificate(
    path: Path, key_path: Path, *, common_name: str, hosts: Sequence[str] = ()
) -> str:
    """Make a key (P-256, mode 0600) and its self-signed certificate, and return the PEM.

    Args:
        path: Where the certificate goes; replaced when there.
        key_path: Where the key goes; replaced when there.
        common_name: Who it stands for: a site's name, or ``fedloom-gateway``.
        hosts: Names and addresses of a server; empty for a client.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = _name(common_name)
    now = datetime.now(UTC)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        # A client that pins a certificate takes it as its own authority.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Python 3.13 asks this of whatever is trusted as an authority (RFC 5280, 4.2.1.3).
        .add_extension(_SIGNS, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        # A site's next certificate bears the same name: without the key's own number the one before
        # it is taken for its issuer, and refused.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(key_path, secret, mode=0o600)
    replace_file(path, pem, mode=0o644)
    return pem.decode()


def certificate_sha256(pem: str) -> str:
    """Return the SHA-256 of a certificate's DER bytes, hex: what a connection is recognised by.

    Raises:
        CampaignError: The text is not one certificate in PEM.
    """
    return _loaded(pem).fingerprint(hashes.SHA256()).hex()


def require_site_certificate(pem: str, *, site: str) -> None:
    """Check that a certificate is one that ``make_certificate`` makes for a site.

    Rosters compare certificates as text, so one certificate may have one text only. And all sites'
    certificates lie in one trust store, where OpenSSL looks for issuers by subject and key
    identifier: with the name or the number of another site in it, a certificate is found in that
    site's place, and the other's handshakes fail.

    Raises:
        CampaignError: It is not.
    """
    found = _loaded(pem)
    if found.public_bytes(Encoding.PEM).decode() != pem:
        raise CampaignError(
            f"the certificate of site {site!r} is PEM in another form than fedloom writes, "
            "expected its tls.crt as it is; `fedloom site enrolment` writes it into enrol.json"
        )
    if not (_is_named(found, site) and _bears_its_own_number(found)):
        raise CampaignError(
            f"the certificate of site {site!r} bears another name or another key's identifier, "
            "expected one that fedloom made for this site; `fedloom site rotate` makes a new one"
        )


def _is_named(certificate: x509.Certificate, name: str) -> bool:
    return certificate.subject == certificate.issuer == _name(name)


def _bears_its_own_number(certificate: x509.Certificate) -> bool:
    """Whether it is self-signed and its key identifiers are those of its own key."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    try:
        certificate.verify_directly_issued_by(certificate)
        stated = certificate.extensions
        return (
            stated.get_extension_for_class(x509.SubjectKeyIdentifier).value == own
            and stated.get_extension_for_class(x509.AuthorityKeyIdentifier).value == issuer
        )
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _loaded(pem: str) -> x509.Certificate:
    refusal = CampaignError(
        "the certificate is not one PEM certificate of at most 4,096 bytes; "
        "`fedloom site init` makes it"
    )
    if len(pem) > _MAX_PEM_BYTES or pem.count("BEGIN CERTIFICATE") != 1:
        raise refusal
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise refusal from error


def valid_until(pem: str) -> datetime:
    """Return when a certificate ends, in UTC; the text is one that ``certificate_sha256`` takes."""
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
