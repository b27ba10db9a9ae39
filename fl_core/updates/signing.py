"""Ed25519 signatures over canonical JSON and over lines of text: the only module that signs.

A signature covers every field of a document but ``signature`` itself, so a field added later is
covered without a change here. Keys are PEM files (PKCS8, not encrypted: the site's worker starts
unattended), readable by their owner only. ``write_key`` never replaces one; a site changes its key
by a document that the old key and the new one have signed.
"""

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fl_core.artifacts.documents import D, to_bytes
from fl_core.errors import CampaignError

SigningKey = Ed25519PrivateKey
_SIGNATURE, _OLD_SIGNATURE = "signature", "old_signature"
_BOTH = frozenset({_SIGNATURE, _OLD_SIGNATURE})
_FINGERPRINT_DIGITS = 32


def generate_key() -> SigningKey:
    """Return a fresh key from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def write_key(key: SigningKey, path: Path) -> None:
    """Write a key as PEM (PKCS8), mode 0600, synced to the disk.

    Raises:
        CampaignError: There is a file already (a key is never replaced), or no folder for it.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CampaignError(
            f"{path} exists, and a signing key is never replaced",
            hint="keep using this key, or choose another folder for a new site",
        ) from error
    except OSError as error:
        raise CampaignError(f"cannot write the signing key {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path) -> SigningKey:
    """Read a key that ``write_key`` wrote.

    Raises:
        CampaignError: No such file, not an Ed25519 key in PEM, or others may read it.
    """
    try:
        pem = path.read_bytes()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise CampaignError(
            f"cannot read the signing key {path}: {error.strerror}",
            hint="`fedloom site init` makes a key",
        ) from error
    if mode & 0o077:
        raise CampaignError(
            f"{path} has mode {mode:04o}, so others may read the signing key; expected 0600",
            hint=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CampaignError(f"{path} is not a private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CampaignError(f"{path} holds a {type(key).__name__}, expected an Ed25519 key")
    return key


def public_hex(key: SigningKey) -> str:
    """Return the public key as 64 lower-case hex digits, as the roster holds it."""
    return key.public_key().public_bytes_raw().hex()


def fingerprint(public_hex: str) -> str:
    """Return what two people compare aloud: 8 groups of 4 hex digits of the key's SHA-256.

    128 bits, so nobody finds another key with the same fingerprint.
    """
    digits = hashlib.sha256(bytes.fromhex(public_hex)).hexdigest()[:_FINGERPRINT_DIGITS]
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def sign(document: D, key: SigningKey) -> D:
    """Return a copy of the document with its ``signature`` filled in.

    Ed25519 (RFC 8032) over the canonical JSON of the document without that field.
    """
    return document.model_copy(update={_SIGNATURE: key.sign(_signed_bytes(document)).hex()})


def verify_signature(document: D, public_hex: str) -> bool:
    """Say whether the document was signed as it stands by the key ``public_hex``.

    A document without a signature, or with a malformed one, is not signed.
    """
    return _holds(getattr(document, _SIGNATURE), public_hex, _signed_bytes(document))


def sign_text(text: str, key: SigningKey) -> str:
    """Return the signature of a text that is no document, such as a request, as hex 128."""
    return key.sign(text.encode()).hex()


def verify_text(text: str, *, signature: str, public_hex: str) -> bool:
    """Say whether a text was signed as it stands by the key ``public_hex``."""
    return _holds(signature, public_hex, text.encode())


def sign_both(document: D, *, old_key: SigningKey, new_key: SigningKey) -> D:
    """Return a copy that a key and the key after it have signed: who hands over, and who takes.

    The old key signs all but both signatures, into ``old_signature``; the new one signs that too,
    into ``signature``.
    """
    signed = old_key.sign(_signed_bytes(document, leave_out=_BOTH)).hex()
    return sign(document.model_copy(update={_OLD_SIGNATURE: signed}), new_key)


def verify_old_signature(document: D, public_hex: str) -> bool:
    """Say whether the key ``public_hex`` signed the document as the one that hands over."""
    signature = getattr(document, _OLD_SIGNATURE) or ""
    return _holds(signature, public_hex, _signed_bytes(document, leave_out=_BOTH))


def _holds(signature: str, public_hex: str, signed: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        key.verify(bytes.fromhex(signature), signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed_bytes(document: D, *, leave_out: frozenset[str] = frozenset({_SIGNATURE})) -> bytes:
    if not leave_out <= set(type(document).model_fields):
        raise TypeError(f"{type(document).__name__} has no field {_SIGNATURE!r} to sign")
    return to_bytes(document, leave_out=leave_out)
