"""The site's outbox: whatever leaves is put here first, once per exchange.

One charge pays for one released draw of noise (SOUNDNESS, rule 11). Two processes of one site, one
of them thought dead, must not let two noised trainings out, and a training that failed must not be
tried again until it fits. Both rest on one write-once object per exchange, ``end.json``: the first
of *committed*, *failed* and *voided* to be written is how the exchange ended, for everybody and for
good. Whoever comes later gets what is stored and sends that. A void is the tombstone that must
stand before a charge is taken back (rule 12): it and the beginning of a training each write first
and look for the other afterwards, so at most one of them goes on.

Layout below the exchange's prefix (``artifacts.keys.exchange``)::

    plan.json                the plan's hash that this exchange belongs to
    attempts/1.json, 2.json  written before a training starts
    files/<sha256>           contents of a commit; those of a lost one stay unreferenced
    end.json                 committed with the hash of every file, failed with a code, or voided
    notes/held.json, ...     what became of it, for the site's own people; decides nothing

Files lie under their own hash, so the files of two attempts never mix. The caller holds
``exclusive`` while it trains; without it two attempts could run at once, and still only one of
them could leave. No random state and nothing about rows is written here, but the payload itself
is: the folder belongs to the site and stays there.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fl_core.artifacts import keys
from fl_core.artifacts.documents import (
    D,
    Document,
    read_document,
    sha256_hex,
    to_bytes,
    write_document,
)
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.specs import Sha256
from fl_core.errors import (
    LedgerConflict,
    ObjectCorrupt,
    ObjectMissing,
    PolicyRefused,
    RoundClosed,
    StoreUnavailable,
)
from fl_core.updates.outbox_record import NOTE_KINDS, ExchangeRecord, Note

MAX_ATTEMPTS = 2
_PLAN = "plan.json"
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class BoundPlan(Document):
    """The one plan that an exchange belongs to."""

    plan_sha256: Sha256


class Attempt(Document):
    """A training was started; written before the first private forward pass."""

    number: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]


class Committed(Document):
    """The exchange ended with files to send: SHA-256 by name."""

    kind: Literal["committed"] = "committed"
    files: dict[str, Sha256]


class Failed(Document):
    """The exchange ended without an update; the code stays at the site."""

    kind: Literal["failed"] = "failed"
    code: str


class Voided(Document):
    """The exchange ended before a training began: a tombstone that forbids one."""

    kind: Literal["voided"] = "voided"


_End = Committed | Failed | Voided
_HOW = {"committed": "has committed", "failed": "has failed", "voided": "was voided"}


class _Ending(Document):
    """How an exchange ended, whichever way."""

    end: Annotated[_End, Field(discriminator="kind")]


class Outbox:
    """Write-once records of what a site sends.

    Args:
        store: A durable store of the site's own; a LocalStore on a local disk.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def require_plan(self, prefix: str, plan_sha256: str) -> None:
        """Bind an exchange to a plan, or check that it is bound to this one (rule 9).

        Raises:
            PolicyRefused: The exchange is bound to another plan.
        """
        bound = write_document(self._store, _plan_key(prefix), BoundPlan(plan_sha256=plan_sha256))
        if bound.plan_sha256 != plan_sha256:
            raise PolicyRefused(
                f"exchange {prefix} belongs to plan {bound.plan_sha256[:12]}, found a second plan "
                f"{plan_sha256[:12]}; a site answers one plan per round, ask the coordinator"
            )

    def begin_attempt(self, prefix: str) -> int:
        """Record that a training starts; to be called before the first private forward pass.

        A second attempt is given only where the first has no ending, so where its process died
        (the caller holds ``exclusive``, so it is not running). There is never a third.

        Returns:
            1 or 2.

        Raises:
            PolicyRefused: No plan was bound with ``require_plan``.
            RoundClosed: The exchange ended, or both attempts were used; it stays charged. Read
                ``committed`` once more then: another process may just have committed.
        """
        if _read(self._store, _plan_key(prefix), BoundPlan) is None:
            raise PolicyRefused(f"exchange {prefix} is bound to no plan; bind it before training")
        number = next((n for n in range(1, MAX_ATTEMPTS + 1) if self._claim(prefix, n)), None)
        # read after the claim: an ending that was written in between must be seen
        ending = self._ending(prefix)
        if ending is not None:
            raise RoundClosed(
                f"exchange {prefix} {_HOW[ending.kind]}; nothing is trained for it again"
            )
        if number is None:
            raise RoundClosed(
                f"exchange {prefix} is over: {MAX_ATTEMPTS} trainings died; it stays charged"
            )
        return number

    def commit(self, prefix: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """End the exchange with files to send, and return what is to be sent.

        If another commit was first, the files of that one are returned and these are dropped.

        Args:
            prefix: The exchange.
            files: Bytes by name; lower case, digits, ``.``, ``_``, ``-``.

        Raises:
            PolicyRefused: No attempt was begun.
            RoundClosed: The exchange ended as failed or voided; these files never leave.
            ValueError: No files, or a name that is not a plain file name.
        """
        if not files or not all(_FILE_NAME.fullmatch(name) for name in files):
            raise ValueError(f"files to commit must have plain names, found {sorted(files)}")
        if not self.is_begun(prefix):
            raise PolicyRefused(
                f"exchange {prefix} was not begun; begin an attempt before training"
            )
        hashes = {name: sha256_hex(data) for name, data in files.items()}
        for name, data in files.items():
            self._store.put_once(_file_key(prefix, hashes[name]), data)
        ending = self._write_ending(prefix, Committed(files=hashes))
        if not isinstance(ending, Committed):
            raise RoundClosed(
                f"exchange {prefix} {_HOW[ending.kind]} before; this update must not leave"
            )
        return self._files(prefix, ending)

    def committed(self, prefix: str) -> dict[str, bytes] | None:
        """Return the files to send by name, or None if nothing was committed.

        Raises:
            ObjectCorrupt: A file is missing, or is not what was committed.
        """
        ending = self._ending(prefix)
        return self._files(prefix, ending) if isinstance(ending, Committed) else None

    def last_state(self, dataset: str, campaign_digest: str, *, before: int) -> bytes | None:
        """Return what the latest committed exchange left for the next, or None if none did.

        State becomes current with the commit of its exchange, so one that failed, died or was
        voided leaves the state before it (SOUNDNESS, rule 12). Usually one record is read.

        Args:
            dataset: Opaque id of the protected data.
            campaign_digest: The campaign; state never crosses to another.
            before: Round that asks.

        Raises:
            ObjectCorrupt: The state is missing, or is not what was committed.
        """
        for number in range(before - 1, 0, -1):
            prefix = keys.exchange(dataset, campaign_digest, number)
            ending = self._ending(prefix)
            if isinstance(ending, Committed) and keys.STATE in ending.files:
                return self._file(prefix, ending, keys.STATE)
        return None

    def mark_failed(self, prefix: str, code: str) -> bool:
        """End the exchange after a caught failure: it is never trained again.

        Returns:
            True if the exchange is over without an update; False if files were committed before,
            which stay to be sent.
        """
        return not isinstance(self._write_ending(prefix, Failed(code=code)), Committed)

    def void(self, prefix: str) -> bool:
        """Close an exchange for good, and say whether no training was ever begun for it.

        Only then may its charge be taken back. The tombstone is written first: whoever begins an
        attempt later sees it and does not train (SOUNDNESS, rule 12).

        Returns:
            True if the exchange is voided and no attempt was begun. False if it ended otherwise,
            or an attempt was begun or is being begun: its charge stands.
        """
        ending = self._write_ending(prefix, Voided())
        if not isinstance(ending, Voided):
            return False
        return not self.is_begun(prefix)

    def exchanges(self, parent: str) -> list[str]:
        """Return the prefixes of all exchanges below ``parent``, also of those that were refused.

        Args:
            parent: What the exchanges' prefixes begin with (``keys.exchanges``).
        """
        found = ("/".join(key.split("/")[:4]) + "/" for key in self._store.list(parent))
        return sorted({prefix for prefix in found if keys.exchange_of(prefix) is not None})

    def plans(self, parent: str) -> dict[str, str]:
        """Return the plan's hash of every exchange below ``parent`` that was bound to one.

        Args:
            parent: What the exchanges' prefixes begin with (``keys.exchanges``).
        """
        plans: dict[str, str] = {}
        for key in self._store.list(parent):
            prefix = key.removesuffix(_PLAN)
            if prefix != key:
                plans[prefix] = read_document(self._store, key, BoundPlan).plan_sha256
        return plans

    def is_begun(self, prefix: str) -> bool:
        """Say whether a training was ever begun for an exchange, whatever became of it."""
        return _read(self._store, _attempt_key(prefix, 1), Attempt) is not None

    def note(self, prefix: str, note: Note) -> Note:
        """Write down a step of an exchange; a second note of its kind changes nothing."""
        return write_document(self._store, f"{prefix}notes/{note.kind}.json", note)

    def record(self, prefix: str) -> ExchangeRecord:
        """Return how far an exchange has come."""
        bound = _read(self._store, _plan_key(prefix), BoundPlan)
        attempts = (_attempt_key(prefix, n) for n in range(1, MAX_ATTEMPTS + 1))
        ending = self._ending(prefix)
        found = {k: _read(self._store, f"{prefix}notes/{k}.json", Note) for k in NOTE_KINDS}
        return ExchangeRecord(
            plan_sha256="" if bound is None else bound.plan_sha256,
            attempts=sum(_read(self._store, key, Attempt) is not None for key in attempts),
            ending="" if ending is None else ending.kind,
            files=ending.files if isinstance(ending, Committed) else {},
            notes={kind: note for kind, note in found.items() if note is not None},
        )

    def is_closed(self, prefix: str) -> bool:
        """Say whether no further attempt may start: it ended, or both attempts were used."""
        last = _read(self._store, _attempt_key(prefix, MAX_ATTEMPTS), Attempt)
        return last is not None or self._ending(prefix) is not None

    def _claim(self, prefix: str, number: int) -> bool:
        if self._ending(prefix) is not None:
            return False
        data = to_bytes(Attempt(number=number))
        return self._store.put_once(_attempt_key(prefix, number), data)

    def _ending(self, prefix: str) -> _End | None:
        ending = _read(self._store, _end_key(prefix), _Ending)
        return None if ending is None else ending.end

    def _write_ending(self, prefix: str, ending: _End) -> _End:
        return write_document(self._store, _end_key(prefix), _Ending(end=ending)).end

    def _files(self, prefix: str, ending: Committed) -> dict[str, bytes]:
        return {name: self._file(prefix, ending, name) for name in sorted(ending.files)}

    def _file(self, prefix: str, ending: Committed, name: str) -> bytes:
        sha256 = ending.files[name]
        try:
            data = self._store.get(_file_key(prefix, sha256))
        except ObjectMissing as error:
            raise ObjectCorrupt(f"{prefix} committed {name!r}, but its bytes are gone") from error
        if sha256_hex(data) != sha256:
            raise ObjectCorrupt(f"{prefix} holds other bytes for {name!r} than were committed")
        return data


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time, until the block or the process ends.

    The kernel frees it when the process is killed; a forked child shares it until it ends as well.

    Args:
        path: Lock file on a local disk, one per dataset; made if it is not there, never removed.

    Raises:
        LedgerConflict: Another process holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"cannot open the lock {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerConflict(
                f"another process works on this dataset (lock {path}); wait for it, or end it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _read(store: ObjectStore, key: str, model: type[D]) -> D | None:
    try:
        return read_document(store, key, model)
    except ObjectMissing:
        return None


def _plan_key(prefix: str) -> str:
    return prefix + _PLAN


def _attempt_key(prefix: str, number: int) -> str:
    return f"{prefix}attempts/{number}.json"


def _file_key(prefix: str, sha256: str) -> str:
    return f"{prefix}files/{sha256}"


def _end_key(prefix: str) -> str:
    return f"{prefix}end.json"
