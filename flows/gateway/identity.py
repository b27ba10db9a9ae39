"""From a request to the site that sent it.

Two ways, both ending at the newest roster: the certificate of the connection, whose private key
the site has proved to hold, or a token signed over this one request. A token ends soon and counts
once; the nonces of tokens that have not ended lie in a file, so that a restart of the gateway does
not make an old request good again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request

from fl_core.artifacts.documents import sha256_hex
from fl_core.artifacts.replacing import replace_file
from fl_core.campaign.roster import RosterEntry
from flows.gateway.members import Members
from tasks.request_token import (
    BODY_SHA256,
    LONGEST_S,
    SCHEME,
    SignedRequest,
    Token,
    is_signed,
    parse_authorization,
    plain_url,
)

ALLOWANCE_S = 30
"""How far a site's clock may be from the gateway's."""

_NO_BODY = sha256_hex(b"")
_ENROL = "the coordinator has to enrol the site with `fedloom enrol enrol.json`"


@dataclass(frozen=True, slots=True)
class Visitor:
    """A site that has shown who it is.

    Attributes:
        site: Its name.
        by: How it showed it.
    """

    site: str
    by: Literal["certificate", "token"]


class Nonces:
    """Nonces that were used, until the token of each has ended.

    Args:
        path: File that keeps them over a restart; None keeps them in memory only.
        now: Unix time.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._until: dict[str, int] = {}
        if path is not None and path.exists():
            self._until = dict(_read_nonces(path))
        self._shrink()

    def take(self, nonce: str, *, until: int) -> bool:
        """Use a nonce; False if it was used before."""
        if nonce in self._until:
            return False
        self._until[nonce] = until
        if self._path is not None:
            with self._path.open("a", encoding="ascii") as file:
                file.write(f"{nonce} {until}\n")
        if len(self._until) > self._crowded:
            self._shrink()
        return True

    def _shrink(self) -> None:
        now = self._now()
        self._until = {nonce: until for nonce, until in self._until.items() if until >= now}
        self._crowded = 2 * len(self._until) + 1000
        if self._path is not None:
            left = "".join(f"{n} {u}\n" for n, u in self._until.items())
            replace_file(self._path, left.encode("ascii"))


class Identifier:
    """Tell which site a request is from.

    Args:
        urls: The gateway's own addresses; a token signed for another one does not count.
        nonces: What was used before.
        now: Unix time.
    """

    def __init__(
        self, urls: tuple[str, ...], nonces: Nonces, now: Callable[[], float] = time.time
    ) -> None:
        self._urls = tuple(dict.fromkeys(map(plain_url, urls)))
        self._nonces = nonces
        self._now = now

    def identify(self, request: Request, members: Members) -> Visitor:
        """Return the site that sent a request.

        Raises:
            HTTPException: 401, nobody that is enrolled; 403, a site that was revoked.
        """
        shown = getattr(request.state, "peer_sha256", None)
        if shown is not None:
            entry = members.by_certificate.get(shown)
            if entry is None:
                raise HTTPException(401, f"no site is enrolled with this certificate; {_ENROL}")
            return Visitor(_living(entry), "certificate")
        header = request.headers.get("authorization", "")
        token = parse_authorization(header)
        if token is None:
            what = "signed token cannot be read" if header.startswith(SCHEME) else "certificate"
            expected = f"expected {'another form' if header.startswith(SCHEME) else 'one'}"
            raise HTTPException(401, f"no {what}, {expected}; {_ENROL}")
        return Visitor(self._signer(request, token, members), "token")

    def _signer(self, request: Request, token: Token, members: Members) -> str:
        now = self._now()
        if not now - ALLOWANCE_S <= token.expires <= now + LONGEST_S + ALLOWANCE_S:
            raise HTTPException(
                401,
                f"the token ends {token.expires - now:+.0f} s from the gateway's time, expected "
                f"at most {LONGEST_S} s ahead; set the site's clock",
            )
        entry = members.roster.entry(token.site)
        earlier = members.roster.history(token.site)
        if entry is None and not earlier:
            raise HTTPException(401, f"no site is enrolled with this key; {_ENROL}")
        signers = (entry,) if entry is not None else earlier[-1:]
        if not any(self._is_signed(request, token, each) for each in signers):
            raise HTTPException(
                401,
                "the token was signed by another key, or for another request or address of the "
                "gateway; use the url of the invite and the key that is enrolled",
            )
        site = _living(signers[0])
        if not signers[0].signs_requests:
            # Its signing key lies in backups too; without the key of TLS it opens nothing.
            raise HTTPException(
                401,
                f"site {site} is enrolled to show its certificate, not to sign requests; where it "
                'states identify = "token", enrol it again by `fedloom site enrolment`',
            )
        if not self._nonces.take(token.nonce, until=token.expires + ALLOWANCE_S):
            raise HTTPException(401, "the token was used before; each request needs its own")
        return site

    def _is_signed(self, request: Request, token: Token, entry: RosterEntry) -> bool:
        target = request.scope["raw_path"].decode("ascii")
        if request.scope["query_string"]:
            target += "?" + request.scope["query_string"].decode("latin-1")
        return any(
            is_signed(
                SignedRequest(
                    url=url,
                    site=token.site,
                    method=request.method,
                    target=target,
                    body_sha256=request.headers.get(BODY_SHA256, _NO_BODY),
                    expires=token.expires,
                    nonce=token.nonce,
                ),
                token.signature,
                public_hex=entry.signing_key,
            )
            for url in self._urls
        )


def _living(entry: RosterEntry) -> str:
    if entry.revoked is not None:
        raise HTTPException(
            403, f"these keys of site {entry.site} were revoked on {entry.revoked:%Y-%m-%d}"
        )
    return entry.site


def _read_nonces(path: Path) -> list[tuple[str, int]]:
    pairs = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return [(pair[0], int(pair[1])) for pair in pairs if len(pair) == 2]  # noqa: PLR2004
