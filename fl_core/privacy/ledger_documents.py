"""One line of a ledger, as a document.

A ledger is read for as long as the data live, so a kind or its fields are never removed or
redefined, and a field that came later is None in older entries: their signatures must still hold.
"""

import bisect
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.roster import PublicKey
from fl_core.campaign.specs import Name, Sha256
from fl_core.updates.records import EventRecord, SequenceNumber, Terms

NO_ENTRY = "0" * 64
MAX_ENTRY_BYTES = 1 << 20


class LostCharge(Document):
    """What a recovery charges for one round whose entry nobody holds any more.

    Attributes:
        campaign_digest: Its campaign.
        round: Its round.
        plan_sha256: Hash of the plan that names the site.
        event: The whole round's event, from the noise that the site built itself.
    """

    campaign_digest: Sha256
    round: Annotated[int, Field(ge=1)]
    plan_sha256: Sha256
    event: EventRecord


class LostRange(Document):
    """Sequence numbers that nobody holds an entry for, both ends included."""

    first: SequenceNumber
    last: SequenceNumber

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.last < self.first:
            msg = f"a lost range ends at {self.last}, before its start {self.first}"
            raise ValueError(msg)
        return self


class LedgerEntry(Document):
    """One line of a ledger.

    Attributes:
        seq: From 1; gaps only where a later ``recovered`` entry names them.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
        kind: ``genesis`` opens a ledger, ``reserve`` charges, ``commit`` says that the update of a
            reserve is in the outbox, ``void`` takes back a reserve that nothing was trained for,
            ``recovered`` charges what was lost, ``rotated`` hands the ledger to another key.
        campaign_digest: Campaign of a reserve, commit or void.
        round: Its round.
        plan_sha256: Hash of the plan that the site accepted for that round.
        event: What a reserve charges.
        terms: Terms under which a reserve was decided; None where no budget applies.
        reserve_seq: The reserve that a commit or void belongs to.
        lost: Of a recovery: sequence numbers below it that nobody holds.
        charges: Of a recovery: what is charged for them, and for what was set aside.
        set_aside: Of a recovery: hashes of entries of another branch that witnesses hold.
        old_key: Of a rotation: the key that signed up to here, hex.
        new_key: Of a rotation: the key that signs from here on.
        old_signature: Of a rotation: Ed25519 of the old key over the rest but ``signature``; None
            where that key was lost, and the new one alone says so.
        time: When it was written, by the site's clock, UTC.
        previous_sha256: SHA-256 of the stored bytes of the entry before; zeros at genesis.
        signature: Ed25519 of the site over the rest; of a rotation, by the new key.
    """

    seq: SequenceNumber
    dataset: Name
    unit: str
    kind: Literal["genesis", "reserve", "commit", "void", "recovered", "rotated"]
    campaign_digest: Sha256 | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    plan_sha256: Sha256 | None = None
    event: EventRecord | None = None
    terms: Terms | None = None
    reserve_seq: SequenceNumber | None = None
    lost: tuple[LostRange, ...] | None = None
    charges: tuple[LostCharge, ...] | None = None
    set_aside: tuple[Sha256, ...] | None = None
    old_key: PublicKey | None = None
    new_key: PublicKey | None = None
    old_signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] | None = None
    time: AwareDatetime
    previous_sha256: Sha256
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        exchange = (self.campaign_digest, self.round, self.plan_sha256)
        has_exchange = all(field is not None for field in exchange)
        is_bare = all(field is None for field in exchange)
        ends = has_exchange and self.event is None and self.reserve_seq is not None
        fits = {
            "genesis": is_bare and self.event is None and self.reserve_seq is None,
            "reserve": has_exchange and self.event is not None and self.reserve_seq is None,
            "commit": ends,
            "void": ends,
            "recovered": is_bare and self.event is None and self.reserve_seq is None,
            "rotated": is_bare and self.event is None and self.reserve_seq is None,
        }
        parts = (self.lost, self.charges, self.set_aside)
        recovers = all(part is not None for part in parts)
        is_recovery = self.kind == "recovered"
        has_terms_in_place = self.terms is None or self.kind == "reserve"
        is_plain = all(part is None for part in parts)
        fits_recovery = recovers if is_recovery else is_plain
        if not (fits[self.kind] and has_terms_in_place and fits_recovery and self._names_keys()):
            msg = f"fields do not fit an entry of kind {self.kind}"
            raise ValueError(msg)
        return self

    def _names_keys(self) -> bool:
        if self.kind != "rotated":
            return self.old_key is None and self.new_key is None and self.old_signature is None
        return self.old_key is not None and self.new_key not in {None, self.old_key}

    @property
    def is_ending(self) -> bool:
        """Whether it ends a reserve."""
        return self.kind in {"commit", "void"}


class LostNumbers:
    """The sequence numbers that recoveries name as lost, all of them together.

    Held as ranges and never counted one by one: an entry may name hundreds of millions.

    Args:
        entries: Where a recovery counts; what is none is passed over.
    """

    def __init__(self, entries: Iterable[LedgerEntry]) -> None:
        named = (each for entry in entries for each in entry.lost or ())
        self._ranges: list[tuple[int, int]] = []
        for first, last in sorted((each.first, each.last) for each in named):
            if self._ranges and first <= self._ranges[-1][1] + 1:
                begin, end = self._ranges.pop()
                self._ranges.append((begin, max(end, last)))
            else:
                self._ranges.append((first, last))

    def __contains__(self, seq: int) -> bool:
        """Say whether a number is named."""
        return self.has_all(seq, seq)

    def has_all(self, first: int, last: int) -> bool:
        """Say whether every number of a range, both ends included, is named; an empty one is."""
        if last < first:
            return True
        at = bisect.bisect_right(self._ranges, first, key=lambda each: each[0]) - 1
        return at >= 0 and last <= self._ranges[at][1]
