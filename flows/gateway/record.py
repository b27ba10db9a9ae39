"""The gateway's record: a line of JSON for every request, passed or refused.

It answers who asked for what and when, which neither Prefect nor the store can: both only ever see
the gateway. Bodies and secrets are never in it; of a query only the store's own parameters of a
known site are. Nobody may push yesterday's lines out: a line is short however its texts are
escaped, and whoever asks more often than honest work does, is refused for it, or sends what is no
request, gets one line a second with a count. What a site wrote to the store always has its own
line. Full files are put aside by their time; the oldest goes when there are many and it is old.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.gateway.limits import Buckets, Rate

RECORD = "record.jsonl"
NO_REQUEST = ("TLS", "")
"""What stands for the method of a handshake that failed, and of what was no HTTP."""

_MAX_CHARS = 400
# Of all keys of a line together.
_MAX_KEYS_CHARS = 800
_MAX_FLOODS = 10
_TOO_MANY, _WRITTEN = 429, 201
_LINES_OF_SITE = Rate(burst=600, per_s=5)
_LINES_OF_ADDRESS = Rate(burst=60, per_s=1)
_LINES_OF_STRANGERS = Rate(burst=600, per_s=1)
_LEAST_AGE_NS = 7 * 24 * 3600 * 10**9
# With the rates above, this many times ``max_files`` outlast the week.
_CROWDED = 8

log = logging.getLogger(__name__)


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
        max_files: How many files that were put aside are kept; those of the last seven days are
            kept beyond it, up to eight times as many.
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
        self._sites = Buckets(_LINES_OF_SITE)
        self._addresses = Buckets(_LINES_OF_ADDRESS)
        self._strangers = Buckets(_LINES_OF_STRANGERS)

    def write(self, line: Line) -> None:
        """Append one line; of a flood, one a second."""
        second = int(self._now())
        self._end_floods(before=second)
        if not self._is_flood(line):
            self._append(line)
            return
        # Refused for its rate is a line of its own: it is what somebody looks for afterwards.
        kind = _TOO_MANY if line.status == _TOO_MANY else line.method if line.site is None else ""
        name = f"{line.site or line.address} {kind}"
        if name in self._floods:
            self._floods[name][1].repeated += 1
        elif line.site is not None or len(self._floods) < _MAX_FLOODS:
            self._floods[name] = (second, line)
        elif "others" in self._floods:
            self._floods["others"][1].repeated += 1
        else:
            self._floods["others"] = (second, line)

    def _is_flood(self, line: Line) -> bool:
        if line.site is not None:
            if line.status == _WRITTEN:
                return False
            return line.status == _TOO_MANY or self._sites.take(line.site) > 0
        # Handshakes and lines that never became a request cost a stranger nothing and are not
        # counted by anybody else.
        if line.status == _TOO_MANY or line.method in NO_REQUEST:
            return True
        return self._addresses.take(line.address) > 0 or self._strangers.take("all") > 0

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
            is_crowded = len(old) > _CROWDED * self._max_files
            if not is_crowded and time.time_ns() - _put_aside_at(path) < _LEAST_AGE_NS:
                break
            if is_crowded:
                log.warning("record of the last days removed, it grows too fast file=%s", path.name)
            path.unlink()
            old = old[1:]
        self._file = self._opened()

    def _opened(self) -> Any:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding="ascii")


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _put_aside_at(path: Path) -> int:
    stated = path.stem.rpartition("-")[2]
    return int(stated) if stated.isdigit() else 0


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return _shortened(value, _MAX_CHARS)
    if isinstance(value, list):
        return [_shortened(each, _MAX_KEYS_CHARS // len(value)) for each in value[:16]]
    return round(value, 1) if isinstance(value, float) else value


def _shortened(text: str, limit: int) -> str:
    # What stands in a path is a stranger's choice, and JSON makes up to twelve characters of one.
    text = text[:limit]
    while len(json.dumps(text)) > limit + len('""'):
        text = text[: len(text) * 7 // 8]
    return text
