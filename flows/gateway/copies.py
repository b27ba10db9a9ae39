"""Which copies of ledger entries are taken for the coordinator's witness.

A witness has to be believed for as long as its site's data live, and nothing can be taken away from
it again. So a copy is taken only where it is an entry of that ledger, signed by a key that the
roster has or had for the site, and near to what is held: whoever has the site's TLS key alone can
write nothing here, and no far number can stand above a ledger that has not got there.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import Roster
from fl_core.errors import ObjectCorrupt

if TYPE_CHECKING:
    from fl_core.privacy.ledger_documents import LedgerEntry

REACH = 256
"""How far above the highest entry that is held a copy may stand."""

MAX_PLAIN_BYTES = 16 << 10
"""Longest entry; a recovery, which lists what it charges, may be longer."""

_KEPT = 4096
_SEQ = re.compile(r"([0-9]{6,9})\.json")


class Copies:
    """Judges copies before they are written.

    Args:
        store: Where they are kept.
        roster: Gives the newest roster.
    """

    def __init__(self, store: ObjectStore, roster: Callable[[], Roster]) -> None:
        self._store = store
        self._roster = roster
        self._highest: OrderedDict[str, int] = OrderedDict()

    def require_sound(self, key: str, data: bytes, *, site: str) -> None:
        """Refuse what is no copy of an entry of the site's ledger, or is far above it.

        Raises:
            HTTPException: 413, too long for its kind; 422, it is none.
            StoreUnavailable: The store does not answer.
        """
        from fl_core.privacy.ledger_documents import LedgerEntry
        from fl_core.privacy.ledger_keys import is_of_keys

        try:
            entry = from_bytes(LedgerEntry, data, what="the copy")
        except ObjectCorrupt:
            raise HTTPException(422, "this is no entry of a ledger") from None
        if len(data) > MAX_PLAIN_BYTES and entry.kind != "recovered":
            raise HTTPException(413, f"an entry of {len(data)} bytes, at most {MAX_PLAIN_BYTES}")
        prefix = keys.witness(site, entry.dataset, entry.unit)
        if keys.witnessed_entry(prefix, entry.seq) != key:
            raise HTTPException(422, "the entry belongs under another key")
        signers = {each.signing_key for each in self._roster().history(site)}
        if not is_of_keys(entry, signers):
            raise HTTPException(422, "the entry is signed by no key that this site has or had")
        self._require_near(prefix, entry)

    def _require_near(self, prefix: str, entry: "LedgerEntry") -> None:
        if entry.seq > self._reach(entry, self._highest.get(prefix, 0)):
            # Another gateway may have written; a listing is not needed for what is near.
            highest = self._held(prefix)
            if entry.seq > self._reach(entry, highest):
                raise HTTPException(
                    422, f"entry {entry.seq} is more than {REACH} above the highest held, {highest}"
                )
            self._note(prefix, highest)

    def written(self, key: str) -> None:
        """Remember that a copy is there now."""
        prefix, _, name = key.rpartition("/")
        self._note(f"{prefix}/", int(name.removesuffix(".json")))

    def _note(self, prefix: str, seq: int) -> None:
        self._highest[prefix] = max(seq, self._highest.pop(prefix, 0))
        if len(self._highest) > _KEPT:
            self._highest.popitem(last=False)

    def _held(self, prefix: str) -> int:
        found = (_SEQ.fullmatch(key.removeprefix(prefix)) for key in self._store.list(prefix))
        return max((int(match[1]) for match in found if match is not None), default=0)

    def _reach(self, entry: "LedgerEntry", highest: int) -> int:
        # What a recovery names as lost will never be held.
        for lost in sorted(entry.lost or (), key=lambda each: each.first):
            if lost.first <= highest + REACH:
                highest = max(highest, lost.last)
        return highest + REACH
