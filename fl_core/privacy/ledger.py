"""The ledger of one protected dataset: append-only, signed, chained by hash.

A charge is durable before the first private forward pass, and a reserve counts as spent: a crash
may cost budget, never privacy. Appending is optimistic. Entry n+1 is written with put_once; who
loses reads again and decides again, so the decision is always about exactly the entries before
the one that is written. Epsilon is never stored; it is derived from the events.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import LedgerConflict, LedgerCorrupt, PolicyRefused
from fl_core.privacy.budget import Spend
from fl_core.privacy.ledger_documents import NO_ENTRY, LedgerEntry
from fl_core.privacy.ledger_entries import Chain, ChainReader, require_sound
from fl_core.updates.records import EventRecord, Terms
from fl_core.updates.signing import public_hex, sign, sign_both

# Every loss means that another writer succeeded; so many in a row means something else is wrong.
MAX_ATTEMPTS = 1000


class Ledger:
    """A site's ledger, opened with the site's key; safe to open in many processes at once.

    Args:
        store: The ledger's own store: durable, at the site, on a local disk.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
        key: The site's signing key.
        clock: Source of the entries' times.
        reader: Has read this ledger before, so that it is not checked again from its start.
    """

    def __init__(  # noqa: PLR0913  what a ledger is about, and two sources with defaults
        self,
        store: ObjectStore,
        *,
        dataset: str,
        unit: str,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        reader: ChainReader | None = None,
    ) -> None:
        self._store = store
        self._reader = reader or ChainReader(public_hex(key))
        self._is_followed = False
        self._key = key
        self._clock = clock
        self.dataset = dataset
        self.unit = unit

    @property
    def public_key(self) -> str:
        """The key that signs the entries, hex."""
        return public_hex(self._key)

    @classmethod
    def create(
        cls, store: ObjectStore, *, dataset: str, unit: str, key: Ed25519PrivateKey, now: datetime
    ) -> Self:
        """Write the genesis of a new ledger and return it open.

        Raises:
            PolicyRefused: There is a ledger in this store; a second one would forget what is spent.
        """
        ledger = cls(store, dataset=dataset, unit=unit, key=key)
        genesis = LedgerEntry(
            seq=1, dataset=dataset, unit=unit, kind="genesis", time=now, previous_sha256=NO_ENTRY
        )
        is_taken = bool(store.list(keys.LEDGER))
        if is_taken or not store.put_once(keys.ledger_entry(1), to_bytes(sign(genesis, key))):
            raise PolicyRefused(
                f"there is a ledger for dataset {dataset!r} already; a second genesis would forget "
                "what is spent, so keep the ledger, or use another dataset id for other rows"
            )
        return ledger

    def chain(self) -> Chain:
        """Return the whole ledger; what was added since the last call is checked.

        Raises:
            LedgerCorrupt: With the first entry that does not hold; there is no genesis; or the
                ledger is about another dataset or unit.
        """
        chain = require_sound(self._reader.read(self._store, is_followed=self._is_followed))
        self._is_followed = True
        own = (chain.entries[0].dataset, chain.entries[0].unit)
        if own != (self.dataset, self.unit):
            raise LedgerCorrupt(
                f"the ledger is about dataset {own[0]!r}, unit {own[1]!r}, the policy about "
                f"{self.dataset!r}, {self.unit!r}; one ledger belongs to one dataset and unit"
            )
        return chain

    def check(self) -> Chain:
        """Read and check everything from the first entry, and return it with what does not hold."""
        return ChainReader(self.public_key).read(self._store)

    def opened_with(self, key: Ed25519PrivateKey) -> "Ledger":
        """Return the same ledger as a holder of another key would open it; nothing is written."""
        return Ledger(self._store, dataset=self.dataset, unit=self.unit, key=key, clock=self._clock)

    def hand_over(self, key: Ed25519PrivateKey) -> "Ledger":
        """Have another key sign from here on, and return the ledger opened with it.

        Both keys sign the entry. Whoever still holds the old key cannot append any more, and
        finds the ledger corrupt. A second time changes nothing.

        Raises:
            LedgerCorrupt: The ledger does not hold, or a third key signs it.
            LedgerConflict: Other writers won every attempt.
        """
        after = self.opened_with(key)
        for _ in range(MAX_ATTEMPTS):
            if after.public_key == self.public_key or not after.check().findings:
                return after
            entry = LedgerEntry(
                **self._next_fields(self.chain()),
                kind="rotated",
                old_key=self.public_key,
                new_key=after.public_key,
            )
            signed = sign_both(entry, old_key=self._key, new_key=key)
            self._store.put_once(keys.ledger_entry(signed.seq), to_bytes(signed))
        raise self._busy()

    def entries(self) -> list[LedgerEntry]:
        """Return all entries, checked; raises as ``chain`` does."""
        return self.chain().entries

    def events(self) -> list[EventRecord]:
        """Return the events of all reserves, checked; raises as ``chain`` does."""
        return self.chain().events()

    def head(self) -> tuple[int, str]:
        """Return sequence and hash of the last entry; raises as ``chain`` does."""
        chain = self.chain()
        return chain.entries[-1].seq, chain.head_sha256

    def reserve(
        self,
        *,
        campaign_digest: str,
        round_number: int,
        plan_sha256: str,
        event: EventRecord,
        require: Callable[[Sequence[EventRecord]], object],
    ) -> LedgerEntry:
        """Charge one round, or return the charge made for it before.

        Args:
            campaign_digest: Campaign that the site pinned.
            round_number: Round, from 1.
            plan_sha256: Hash of the plan that the site accepted.
            event: The whole round's event, from the noise that the site built itself.
            require: Decides on the events that precede the entry, and raises to refuse. A ``Spend``
                that it returns fixes the terms of this and all later charges.

        Raises:
            PolicyRefused: The round was charged for another plan or event (SOUNDNESS, rule 9), it
                is over, or the terms differ from those of an earlier charge (rule 15).
            LedgerConflict: Other writers won every attempt.
            LedgerCorrupt: The ledger does not hold.
        """
        for _ in range(MAX_ATTEMPTS):
            chain = self.chain()
            earlier = chain.reserve_of(campaign_digest, round_number)
            if earlier is not None:
                _require_not_over(chain, earlier)
                return _require_same_charge(earlier, plan_sha256, event)
            decided = require(chain.events())
            terms = decided.terms if isinstance(decided, Spend) else None
            _require_same_terms(chain.entries, terms)
            entry = LedgerEntry(
                **self._next_fields(chain),
                kind="reserve",
                campaign_digest=campaign_digest,
                round=round_number,
                plan_sha256=plan_sha256,
                event=event,
                terms=terms,
            )
            if (written := self._append(entry)) is not None:
                return written
        raise self._busy()

    def commit(self, reserve: LedgerEntry) -> LedgerEntry:
        """Note that the update of a reserve is in the outbox; a second time changes nothing.

        What a recovery has charged is returned as it is: that round's charge is final.

        Raises:
            LedgerCorrupt: The reserve is not in this ledger or was voided, or the ledger does not
                hold.
            LedgerConflict: Other writers won every attempt.
        """
        ending = self._end(reserve, kind="commit")
        if ending.kind == "void":
            raise LedgerCorrupt(
                f"round {reserve.round} of dataset {self.dataset!r} was voided as entry "
                f"{ending.seq}, and the outbox holds an update of it; it must not leave"
            )
        return ending

    def void(self, reserve: LedgerEntry) -> LedgerEntry:
        """Take a reserve back that nothing was trained for; returns how the reserve ended.

        The caller has written the outbox's tombstone and seen that no attempt was begun (SOUNDNESS,
        rule 12); after that no training for it can start, so its event is not spent. A reserve
        that was committed stays committed.

        Raises:
            LedgerCorrupt: The reserve is not in this ledger, or the ledger does not hold.
            LedgerConflict: Other writers won every attempt.
        """
        return self._end(reserve, kind="void")

    def _end(self, reserve: LedgerEntry, *, kind: Literal["commit", "void"]) -> LedgerEntry:
        if reserve.kind == "recovered":
            return reserve
        for _ in range(MAX_ATTEMPTS):
            chain = self.chain()
            if chain.reserve_of(str(reserve.campaign_digest), reserve.round or 0) != reserve:
                raise LedgerCorrupt(
                    f"reserve {reserve.seq} is not in the ledger of {self.dataset!r}; it was "
                    "rolled back or is another ledger's"
                )
            if (ending := chain.endings.get(reserve.seq)) is not None:
                return ending
            entry = LedgerEntry(
                **self._next_fields(chain),
                kind=kind,
                campaign_digest=reserve.campaign_digest,
                round=reserve.round,
                plan_sha256=reserve.plan_sha256,
                reserve_seq=reserve.seq,
            )
            if (written := self._append(entry)) is not None:
                return written
        raise self._busy()

    def _busy(self) -> LedgerConflict:
        return LedgerConflict(
            f"ledger of {self.dataset!r} was busy {MAX_ATTEMPTS} times; try again"
        )

    def _next_fields(self, chain: Chain) -> dict[str, Any]:
        return {
            "seq": chain.entries[-1].seq + 1,
            "dataset": self.dataset,
            "unit": self.unit,
            "time": self._clock(),
            "previous_sha256": chain.head_sha256,
        }

    def _append(self, entry: LedgerEntry) -> LedgerEntry | None:
        signed = sign(entry, self._key)
        return (
            signed if self._store.put_once(keys.ledger_entry(entry.seq), to_bytes(signed)) else None
        )


def _require_not_over(chain: Chain, earlier: LedgerEntry) -> None:
    if earlier.kind == "recovered" or chain.is_voided(earlier):
        how = "charged by a recovery" if earlier.kind == "recovered" else "voided"
        raise PolicyRefused(
            f"this round was {how} (entry {earlier.seq} of dataset {earlier.dataset!r}); "
            "nothing is trained for it any more"
        )


def _require_same_charge(earlier: LedgerEntry, plan_sha256: str, event: EventRecord) -> LedgerEntry:
    if earlier.plan_sha256 != plan_sha256 or earlier.event != event:
        what = "plan" if earlier.plan_sha256 != plan_sha256 else "event"
        raise PolicyRefused(
            f"round {earlier.round} was charged as entry {earlier.seq} for another {what}; "
            "a round is trained for one plan only, so a second one is refused"
        )
    return earlier


def _require_same_terms(entries: Sequence[LedgerEntry], terms: Terms | None) -> None:
    for entry in entries:
        if terms is None or entry.terms is None or entry.terms == terms:
            continue
        field = "series" if entry.terms.rdp_order == terms.rdp_order else "rdp_order"
        raise PolicyRefused(
            f"policy field {field!r} is not what entry {entry.seq} was charged under; it is fixed "
            f"by the first charge: set it back ({entry.terms.model_dump_json(exclude_none=True)})"
        )
