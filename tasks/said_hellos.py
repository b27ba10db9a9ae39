"""What sites have said of themselves, kept in the store: the last word of each.

A hello is written when it differs from the site's last one, so a site that starts every morning
with the same versions leaves one document, and one that changes versions leaves the history. Keys
begin with their time, so that the last word is read and no other, however long the history is.
"""

import re
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime

from fl_core.artifacts.documents import Document, document_sha256, read_document, to_bytes
from fl_core.artifacts.store import ObjectStore
from tasks.hello import Hello

MAX_HELLO_BYTES = 16 << 10
_KEY = re.compile(r"hellos/[a-z0-9-]+/[0-9]{8}T[0-9]{12}Z-[0-9a-f]{64}\.json")


class SaidHello(Document):
    """One hello, and when it came.

    Attributes:
        hello: What the site said.
        at: When the gateway heard it first after another one, UTC.
    """

    hello: Hello
    at: AwareDatetime


def hellos_of(site: str) -> str:
    """Return the prefix of all that a site has said."""
    return f"hellos/{site}/"


def latest_hello(store: ObjectStore, site: str) -> SaidHello | None:
    """Return what a site said last, or None if it never said anything.

    Raises:
        ObjectCorrupt: A document there is none of ours.
        StoreUnavailable: The store does not answer.
    """
    found = [key for key in store.list(hellos_of(site)) if _KEY.fullmatch(key)]
    if not found:
        return None
    return read_document(store, found[-1], SaidHello, max_bytes=MAX_HELLO_BYTES)


def keep_hello(store: ObjectStore, hello: Hello, *, now: datetime) -> bool:
    """Write a hello down if the site's last one was another; say whether it was.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    last = latest_hello(store, hello.site)
    if last is not None and last.hello == hello:
        return False
    # A clock that was set back makes no last word an earlier one.
    at = now if last is None else max(now, last.at + timedelta(microseconds=1))
    said = SaidHello(hello=hello, at=at.astimezone(UTC))
    name = f"{said.at:%Y%m%dT%H%M%S%f}Z-{document_sha256(said)}.json"
    return store.put_once(hellos_of(hello.site) + name, to_bytes(said))
