"""The signed token: how a site shows who it is where TLS ends before the gateway.

Each request is signed by the site's signing key over all that it says: where it goes, what it
asks, the hash of what it carries, until when it counts, and a number that is taken once. So a
proxy in between can drop a request, and can change, repeat or redirect none.
"""

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_core.artifacts.documents import sha256_hex

if TYPE_CHECKING:
    from fl_core.updates.signing import SigningKey

SCHEME = "Fedloom"
LIFETIME_S = 60
_DOMAIN = "fedloom-request-1"


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a token speaks of.

    Attributes:
        url: The gateway's URL as the site's config states it.
        site: Who asks.
        method: HTTP method.
        path: Path with query, as sent.
        body_sha256: SHA-256 of the body, hex, also of an empty one.
        expires: Unix seconds after which the token is nothing any more.
        nonce: 32 hex digits, taken once.
    """

    url: str
    site: str
    method: str
    path: str
    body_sha256: str
    expires: int
    nonce: str

    def signed_text(self) -> bytes:
        """Return what the signature covers: a line per field, after the kind of the text."""
        lines = (
            _DOMAIN,
            self.url.lower().rstrip("/"),
            self.site,
            self.method,
            self.path,
            self.body_sha256,
            str(self.expires),
            self.nonce,
        )
        return "\n".join(lines).encode()


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs the requests of one site to one gateway.

    Attributes:
        url: The gateway's URL as the site's config states it.
        site: The site's name.
        key: The site's signing key.
    """

    url: str
    site: str
    key: "SigningKey"

    def authorization(self, method: str, path: str, body: bytes) -> str:
        """Return the ``Authorization`` header of one request; good once, for a minute."""
        request = SignedRequest(
            url=self.url,
            site=self.site,
            method=method,
            path=path,
            body_sha256=sha256_hex(body),
            expires=int(time.time()) + LIFETIME_S,
            nonce=secrets.token_hex(16),
        )
        signature = self.key.sign(request.signed_text()).hex()
        return (
            f"{SCHEME} site={request.site},expires={request.expires},nonce={request.nonce},"
            f"signature={signature}"
        )
