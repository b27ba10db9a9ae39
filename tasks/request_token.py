"""A request that says who sent it: one line of header, signed by the site's signing key.

For sites whose way out ends TLS at a proxy, where a client certificate does not arrive. What is
signed names the gateway, the method, the path with its query and the hash of the body, so a token
that was overheard opens nothing else; it ends within a minute and a half and counts once. The text
begins with a name of its own, so no signature of a request is one of a document.
"""

import re
from dataclasses import dataclass

from fl_core.updates.signing import SigningKey, sign_text, verify_text

SCHEME = "Fedloom"
BODY_SHA256 = "x-fedloom-sha256"
"""Header with the SHA-256 of a body: of what is sent, and of what is answered."""

LONGEST_S = 90
"""How many seconds ahead a token may end."""

_FIRST_LINE = "fedloom-request-1"
_HEADER = re.compile(
    r"Fedloom site=(?P<site>[a-z0-9-]{1,64}),expires=(?P<expires>[0-9]{1,12}),"
    r"nonce=(?P<nonce>[0-9a-f]{32}),signature=(?P<signature>[0-9a-f]{128})"
)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a token is about.

    Attributes:
        url: The gateway's address as the site's config states it.
        site: The site's name.
        method: HTTP method, upper case.
        target: Path with query, as it stands on the request's line.
        body_sha256: Hex; of no bytes where there is no body.
        expires: Unix time in seconds.
        nonce: 32 hex digits, drawn for this request.
    """

    url: str
    site: str
    method: str
    target: str
    body_sha256: str
    expires: int
    nonce: str

    def text(self) -> str:
        """Return what is signed, a line each."""
        lines = (
            _FIRST_LINE,
            plain_url(self.url),
            self.site,
            self.method,
            self.target,
            self.body_sha256,
            str(self.expires),
            self.nonce,
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Token:
    """What an ``Authorization`` header states; nothing of it is verified.

    Attributes:
        site: Who it claims to be.
        expires: Unix time in seconds.
        nonce: 32 hex digits.
        signature: 128 hex digits.
    """

    site: str
    expires: int
    nonce: str
    signature: str


def plain_url(url: str) -> str:
    """Return a gateway's address as it is signed: lower case, no slash at its end."""
    return url.lower().rstrip("/")


def authorization(request: SignedRequest, key: SigningKey) -> str:
    """Return the value of the ``Authorization`` header of a request."""
    signature = sign_text(request.text(), key)
    return (
        f"{SCHEME} site={request.site},expires={request.expires},nonce={request.nonce},"
        f"signature={signature}"
    )


def parse_authorization(header: str) -> Token | None:
    """Read an ``Authorization`` header, or None if it is none of ours."""
    match = _HEADER.fullmatch(header)
    if match is None:
        return None
    return Token(match["site"], int(match["expires"]), match["nonce"], match["signature"])


def is_signed(request: SignedRequest, signature: str, *, public_hex: str) -> bool:
    """Say whether the key ``public_hex`` signed exactly this request."""
    return verify_text(request.text(), signature=signature, public_hex=public_hex)
