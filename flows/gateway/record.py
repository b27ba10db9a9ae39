"""The gateway's record: a line of JSON for every request, passed or refused.

It answers who asked for what and when, which neither Prefect nor the store can: both only ever see
the gateway. Bodies and secrets are never in it; of a query only the store's own parameters are. A
party that is refused for asking too often, or that sends what is no request, gets one line a second
with a count, so that a flood cannot push yesterday's lines out. Full files are put aside by their
time and the oldest removed.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECORD = "record.jsonl"
NO_REQUEST = ("TLS", "")
"""What stands for the method of a handshake that failed, and of what was no HTTP."""

_MAX_CHARS = 400
_MAX_FLOODS = 1000
_TOO_MANY = 429


@dataclass(slots=True)
class Line:
    """One request.

    Attributes:
        method: HTTP method, or ``TLS`` for a connection that did not come about.
        path: Path without its query.
        keys: Keys or prefix of the store that the query names.
        address: Where the connection comes from.
        site: Who it is; None where nobody known.
        by: How the site showed it.
        status: HTTP status; 0 where there was no answer.
        detail: Why it was refused.
        received: Bytes of the body that were read.
        sent: Bytes of the answer's body.
        ms: Milliseconds until the answer was sent.
        repeated: How many further requests of the same second this line stands for.
    """

    method: str
    path: str
    address: str = ""
    site: str | None = None
    by: str | None = None
    status: int = 0
    detail: str | None = None
    keys: list[str] = field(default_factory=list)
    received: int = 0
    sent: int = 0
    ms: float = 0.0
    repeated: int = 0


class Record:
    """Append-only lines in a folder.

    Args:
        folder: Where ``record.jsonl`` and its earlier files lie.
        max_bytes: Length at which a file is put aside.
        max_files: How many files that were put aside are kept.
        now: Unix time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 32 << 20,
        max_files: int = 30,
        now: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RECORD
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._now = now
        self._file = self._opened()
        self._floods: dict[str, tuple[int, Line]] = {}

    def write(self, line: Line) -> None:
        """Append one line; of a flood, one a second."""
        second = int(self._now())
        self._end_floods(before=second)
        if not _is_flood(line):
            self._append(line)
            return
        name = f"{line.site or line.address} {line.method if line.site is None else ''}"
        if name in self._floods:
            self._floods[name][1].repeated += 1
        elif len(self._floods) < _MAX_FLOODS:
            self._floods[name] = (second, line)
        else:
            self._floods.setdefault("others", (second, line))[1].repeated += 1

    def close(self) -> None:
        """Write what is held back and close the file."""
        self.settle()
        self._file.close()

    def settle(self) -> None:
        """Write all that is held back."""
        self._end_floods(before=None)

    def flush(self) -> None:
        """Write what is held back of seconds that are over; to be called now and then."""
        self._end_floods(before=int(self._now()))

    def _end_floods(self, *, before: int | None) -> None:
        for name, (second, line) in list(self._floods.items()):
            if before is None or second < before:
                del self._floods[name]
                self._append(line)

    def _append(self, line: Line) -> None:
        plain: dict[str, Any] = {"time": _shown(self._now())} | {
            name: _short(value) for name, value in asdict(line).items() if value not in (None, [])
        }
        if not line.repeated:
            del plain["repeated"]
        self._file.write(json.dumps(plain, ensure_ascii=True) + "\n")
        self._file.flush()
        if self._file.tell() >= self._max_bytes:
            self._put_aside()

    def _put_aside(self) -> None:
        self._file.close()
        aside = f"{self.path.stem}-{time.time_ns()}{self.path.suffix}"
        self.path.replace(self.path.with_name(aside))
        old = sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))
        for path in old[: -self._max_files]:
            path.unlink()
        self._file = self._opened()

    def _opened(self) -> Any:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding="ascii")


def _is_flood(line: Line) -> bool:
    # Handshakes and lines that never became a request cost a stranger nothing and are not counted
    # by anybody else.
    return line.status == _TOO_MANY or (line.site is None and line.method in NO_REQUEST)


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _short(value: Any) -> Any:
    # What stands in a path is a stranger's choice; JSON escapes it, this bounds it.
    if isinstance(value, str):
        return value[:_MAX_CHARS]
    if isinstance(value, list):
        return [_short(each) for each in value[:16]]
    return round(value, 1) if isinstance(value, float) else value
