"""The record of all that leaves a site: a line before the bytes go, and one when an answer came.

Every process of the site writes to one file, append only, so that the operator has one answer to
"what has left this machine". A request whose line cannot be written is not sent. A body is never
kept, only its length and SHA-256: what an update holds is in the outbox, and no second copy of it
may lie about. What another process asked to send and this side refused is recorded too, as kept.

A file that has grown is set aside under its date and packed an hour later, never removed: that is
the operator's decision.
"""

import gzip
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal
from urllib.parse import unquote

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from fl_core.artifacts.documents import Document, to_bytes
from fl_core.errors import StoreUnavailable

FILE = "outgoing.jsonl"
LONGEST_BYTES = 16 << 20
# A process that opened the file before it was set aside has long written its line by then.
_PACK_AFTER_S = 3600.0
_OBJECTS = "/store/objects/"


class Sent(Document):
    """A request that is about to leave.

    Attributes:
        at: When.
        request: Names this request in the line of its answer.
        process: Which process of the site, with its pid.
        method: HTTP method.
        path: Path with query, as sent.
        payload_bytes: Length of the body.
        payload_sha256: SHA-256 of the body; empty without one.
    """

    kind: Literal["sent"] = "sent"
    at: AwareDatetime
    request: str
    process: str
    method: str
    path: str
    payload_bytes: int = 0
    payload_sha256: str = ""


class Answered(Document):
    """How a request ended.

    Attributes:
        at: When.
        request: Which one.
        status: HTTP status; None: no answer came, and the bytes may have arrived or not.
    """

    kind: Literal["answered"] = "answered"
    at: AwareDatetime
    request: str
    status: int | None = None


class Kept(Document):
    """What was to leave, or was asked of the site, and was refused here.

    Attributes:
        at: When.
        process: Which process refused it, with its pid.
        method: HTTP method, or what was asked.
        path: Path with query.
        reason: Why, in fixed words.
    """

    kind: Literal["kept"] = "kept"
    at: AwareDatetime
    process: str
    method: str
    path: str
    reason: str


_LINE: TypeAdapter[Sent | Answered | Kept] = TypeAdapter(
    Annotated[Sent | Answered | Kept, Field(discriminator="kind")]
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request as the operator reads it.

    Attributes:
        at: When it left, or was refused.
        process: Which process, with its pid.
        method: HTTP method.
        path: Path with query.
        payload_bytes: Length of the body.
        payload_sha256: SHA-256 of the body; empty without one.
        status: HTTP status of the answer; None: no answer (yet).
        kept: Why it was refused here and did not leave; empty for what left.
    """

    at: datetime
    process: str
    method: str
    path: str
    payload_bytes: int = 0
    payload_sha256: str = ""
    status: int | None = None
    kept: str = ""

    @property
    def key(self) -> str:
        """The store's key that it is about, or an empty string."""
        plain = self.path.partition("?")[0]
        return unquote(plain.removeprefix(_OBJECTS)) if plain.startswith(_OBJECTS) else ""


class OutgoingLog:
    """Append to the record of one site; safe to share between threads and processes.

    Args:
        home: The site's folder.
        process: What this process is, in one word.
    """

    def __init__(self, home: Path, *, process: str) -> None:
        self._path = home / FILE
        self._process = f"{process} {os.getpid()}"

    def sends(self, method: str, path: str, body: bytes = b"") -> str:
        """Note a request before it leaves, and return its name for ``answered``.

        What has a body is on the disk before it leaves.

        Raises:
            StoreUnavailable: The line cannot be written, so nothing may be sent.
        """
        name = secrets.token_hex(8)
        line = Sent(
            at=datetime.now(UTC),
            request=name,
            process=self._process,
            method=method,
            path=path,
            payload_bytes=len(body),
            payload_sha256=hashlib.sha256(body).hexdigest() if body else "",
        )
        self._append(line, is_durable=method == "PUT")
        return name

    def answered(self, request: str, status: int | None) -> None:
        """Note how a request ended; None where no answer came.

        Raises:
            StoreUnavailable: The line cannot be written.
        """
        self._append(Answered(at=datetime.now(UTC), request=request, status=status))

    def kept(self, method: str, path: str, *, reason: str) -> None:
        """Note what was refused on this side.

        Raises:
            StoreUnavailable: The line cannot be written.
        """
        line = Kept(
            at=datetime.now(UTC), process=self._process, method=method, path=path, reason=reason
        )
        self._append(line)

    def set_aside(self) -> None:
        """Begin a new file where the old one is long, and pack those of more than an hour ago."""
        folder = self._path.parent
        for old in folder.glob("outgoing-*.jsonl"):
            if time.time() - old.stat().st_mtime > _PACK_AFTER_S:
                _pack(old)
        if self._path.exists() and self._path.stat().st_size > LONGEST_BYTES:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
            self._path.rename(folder / f"outgoing-{stamp}-{os.getpid()}.jsonl")

    def _append(self, line: Document, *, is_durable: bool = False) -> None:
        try:
            # Opened anew for each line: another process may have set the file aside.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                _write_whole(descriptor, to_bytes(line) + b"\n")
                if is_durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write {self._path} ({error.strerror}), and nothing leaves unrecorded",
                hint="make room on the site's disk, or give its folder back to its owner",
            ) from error


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """What a site's record says.

    Attributes:
        requests: What left and what was kept, in the order of the record.
        n_unreadable: Lines that are none: cut off by a power cut, changed, or of a later fedloom.
    """

    requests: list[Outgoing]
    n_unreadable: int


def read_outgoing(home: Path, *, since: datetime | None = None) -> list[Outgoing]:
    """Return the requests of ``read_record`` alone."""
    return read_record(home, since=since).requests


def read_record(home: Path, *, since: datetime | None = None) -> OutgoingRecord:
    """Read a site's record of what left and what was kept.

    Args:
        home: The site's folder.
        since: Leave out what is older; None reads everything.
    """
    found: dict[str, Outgoing] = {}
    n_unreadable = 0
    for number, line in enumerate(_lines(home, since)):
        if line is None:
            n_unreadable += 1
        elif isinstance(line, Answered):
            sent = found.get(line.request)
            if sent is not None:
                found[line.request] = _with_status(sent, line.status)
        elif isinstance(line, Kept):
            found[f"kept {number}"] = Outgoing(
                line.at, line.process, line.method, line.path, kept=line.reason
            )
        else:
            found[line.request] = Outgoing(
                line.at,
                line.process,
                line.method,
                line.path,
                line.payload_bytes,
                line.payload_sha256,
            )
    requests = [each for each in found.values() if since is None or each.at >= since]
    return OutgoingRecord(requests, n_unreadable)


def _with_status(sent: Outgoing, status: int | None) -> Outgoing:
    return Outgoing(
        sent.at,
        sent.process,
        sent.method,
        sent.path,
        sent.payload_bytes,
        sent.payload_sha256,
        status,
    )


def _lines(home: Path, since: datetime | None) -> Iterator[Sent | Answered | Kept | None]:
    for path in _files(home):
        # A file system's clock may lag by some milliseconds.
        if since is not None and path.stat().st_mtime + 1 < since.timestamp():
            continue
        with _opened(path) as file:
            for line in file:
                try:
                    yield _LINE.validate_json(line)
                except ValidationError:
                    # Counted, not passed over: a request must not vanish from the record unseen.
                    yield None


def _files(home: Path) -> list[Path]:
    aside = sorted([*home.glob("outgoing-*.jsonl"), *home.glob("outgoing-*.jsonl.gz")])
    newest = home / FILE
    return [*aside, newest] if newest.exists() else aside


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _pack(path: Path) -> None:
    packed = path.with_name(path.name + ".gz")
    fresh = path.with_name(path.name + ".new")
    with path.open("rb") as source, gzip.open(fresh, "wb") as target:
        shutil.copyfileobj(source, target)
    times = path.stat()
    os.utime(fresh, (times.st_atime, times.st_mtime))
    fresh.rename(packed)
    path.unlink(missing_ok=True)


def _write_whole(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    if written != len(data):
        # The rest would stand behind another process' line; the cut one is skipped by the reader.
        raise OSError(28, "the line was cut short")
