"""Signatures and key files."""

import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fl_core.artifacts.documents import Document, from_bytes, to_bytes
from fl_core.errors import CampaignError
from fl_core.updates.manifest import Declined
from fl_core.updates.signing import (
    fingerprint,
    generate_key,
    public_hex,
    read_key,
    sign,
    verify_signature,
    write_key,
)

# RFC 8032, section 7.1, TEST 1
RFC_SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
DECLINED = Declined(
    campaign_digest="a" * 64, round=3, site="north", reason="gate", rules=("dates",)
)


def test_public_key_is_that_of_rfc_8032():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET))

    assert public_hex(key) == RFC_PUBLIC


def test_fingerprint_is_the_start_of_the_keys_sha256_in_groups_of_four():
    # printf RFC_PUBLIC | xxd -r -p | sha256sum
    assert fingerprint(RFC_PUBLIC) == "21fe 31df a154 a261 626b f854 046f d227"


def test_signature_is_ed25519_over_the_canonical_json_without_the_signature_field():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET))

    signed = sign(DECLINED, key)

    # written by hand: sorted keys, no blanks, no signature
    text = (
        f'{{"campaign_digest":"{"a" * 64}","reason":"gate","round":3,'
        '"rules":["dates"],"site":"north"}'
    )
    key.public_key().verify(bytes.fromhex(signed.signature), text.encode())
    assert signed.model_copy(update={"signature": ""}) == DECLINED


def test_signed_document_verifies_after_it_was_stored_and_read():
    key = generate_key()

    read = from_bytes(Declined, to_bytes(sign(DECLINED, key)), what="declined.json")

    assert verify_signature(read, public_hex(key))


@pytest.mark.parametrize(
    "change",
    [{"round": 4}, {"site": "south"}, {"reason": "budget"}, {"rules": ()}],
    ids=lambda change: next(iter(change)),
)
def test_any_changed_field_breaks_the_signature(change):
    key = generate_key()

    forged = sign(DECLINED, key).model_copy(update=change)

    assert not verify_signature(forged, public_hex(key))


def test_signing_a_signed_document_again_gives_the_same_signature():
    key = generate_key()

    assert sign(sign(DECLINED, key), key) == sign(DECLINED, key)


@pytest.mark.parametrize("signature", ["", "00" * 64, "zz", "ab" * 63])
def test_missing_or_malformed_signature_is_none(signature):
    forged = DECLINED.model_copy(update={"signature": signature})

    assert not verify_signature(forged, RFC_PUBLIC)


def test_signature_of_another_key_is_none():
    assert not verify_signature(sign(DECLINED, generate_key()), public_hex(generate_key()))


def test_document_without_a_signature_field_cannot_be_signed():
    with pytest.raises(TypeError, match="no field 'signature'"):
        sign(Document(), generate_key())


def test_key_file_is_private_and_reads_back(tmp_path):
    key, path = generate_key(), tmp_path / "site.pem"

    write_key(key, path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_hex(read_key(path)) == public_hex(key)


def test_key_file_is_what_openssl_reads(tmp_path):
    path = tmp_path / "site.pem"
    write_key(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET)), path)

    shown = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"],
        check=True,
        capture_output=True,
    )

    # the last 32 bytes of a SubjectPublicKeyInfo are the key (RFC 8410, section 4)
    assert shown.stdout[-32:].hex() == RFC_PUBLIC


def test_key_file_is_never_replaced(tmp_path):
    path = tmp_path / "site.pem"
    write_key(generate_key(), path)
    before = path.read_bytes()

    with pytest.raises(CampaignError, match="never replaced"):
        write_key(generate_key(), path)

    assert path.read_bytes() == before


def test_key_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "site.pem"
    write_key(generate_key(), path)
    path.chmod(0o644)

    with pytest.raises(CampaignError, match="mode 0644, so others may read"):
        read_key(path)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_file_that_is_no_key_is_refused_without_showing_it(tmp_path):
    path = _write(tmp_path / "site.pem", b"sensitive text")

    with pytest.raises(CampaignError, match="is not a private key in PEM") as caught:
        read_key(path)

    assert "sensitive" not in str(caught.value)


def test_key_of_another_kind_is_refused(tmp_path):
    other = X25519PrivateKey.generate()
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(CampaignError, match="expected an Ed25519 key"):
        read_key(_write(tmp_path / "site.pem", pem))


def test_missing_key_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(CampaignError, match="cannot read the signing key") as caught:
        read_key(tmp_path / "absent.pem")

    assert "site init" in caught.value.hint


def test_key_without_a_folder_to_go_to_is_told(tmp_path):
    with pytest.raises(CampaignError, match="cannot write the signing key"):
        write_key(generate_key(), tmp_path / "absent" / "site.pem")
