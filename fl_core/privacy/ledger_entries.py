"""The entries of a ledger, and the check that a chain of them holds.

Reading needs the public key only, so a coordinator, an auditor or a backup can verify a copy. The
check is the same everywhere: sequence without gaps, hashes, signatures, one dataset, one charge per
round, commits of open reserves only. It cannot show that the end of a chain was cut off; witnesses
outside the site can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, from_bytes, sha256_hex
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.specs import Count, Name, Sha256
from fl_core.errors import LedgerCorrupt, ObjectCorrupt
from fl_core.updates.records import EventRecord, Terms
from fl_core.updates.signing import verify_signature

NO_ENTRY = "0" * 64


class LedgerEntry(Document):
    """One line of a ledger.

    Attributes:
        seq: From 1, without gaps.
        dataset: Opaque id of the protected data.
        unit: Unit of protection.
        kind: ``genesis`` opens a ledger, ``reserve`` charges, ``commit`` says that the update of a
            reserve is in the outbox.
        campaign_digest: Campaign of a reserve or commit.
        round: Its round.
        plan_sha256: Hash of the plan that the site accepted for that round.
        event: What a reserve charges.
        terms: Terms under which a reserve was decided; None where no budget applies.
        reserve_seq: The reserve that a commit belongs to.
        time: When it was written, by the site's clock, UTC.
        previous_sha256: SHA-256 of the stored bytes of the entry before; zeros at genesis.
        signature: Ed25519 of the site over the rest.
    """

    seq: Count
    dataset: Name
    unit: str
    kind: Literal["genesis", "reserve", "commit"]
    campaign_digest: Sha256 | None = None
    round: Count | None = None
    plan_sha256: Sha256 | None = None
    event: EventRecord | None = None
    terms: Terms | None = None
    reserve_seq: Count | None = None
    time: AwareDatetime
    previous_sha256: Sha256
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        exchange = (self.campaign_digest, self.round, self.plan_sha256)
        has_exchange = all(field is not None for field in exchange)
        is_bare = all(field is None for field in exchange)
        fits = {
            "genesis": is_bare and self.event is None and self.reserve_seq is None,
            "reserve": has_exchange and self.event is not None and self.reserve_seq is None,
            "commit": has_exchange and self.event is None and self.reserve_seq is not None,
        }
        if not fits[self.kind] or (self.terms is not None and self.kind != "reserve"):
            msg = f"fields do not fit an entry of kind {self.kind}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Chain:
    """A ledger as it was read.

    Attributes:
        entries: In order, up to the first that cannot be read.
        head_sha256: Hash of the last one's stored bytes.
        findings: What does not hold, in order; empty if all of it does.
    """

    entries: list[LedgerEntry]
    head_sha256: str
    findings: list[str]

    def events(self) -> list[EventRecord]:
        """Return the events of all reserves, committed or not: a reserve counts as spent."""
        return [entry.event for entry in self.entries if entry.event is not None]

    def reserve_of(self, campaign_digest: str, round_number: int) -> LedgerEntry | None:
        """Return the charge of one round, or None."""
        return _reserve_of(self.entries, campaign_digest, round_number)


def read_ledger(store: ObjectStore, public_key: str) -> Chain:
    """Return a ledger signed by ``public_key`` (hex), every entry checked.

    Raises:
        LedgerCorrupt: With the first entry that does not hold; or there is no genesis.
    """
    chain = _checked(store, public_key)
    if chain.findings:
        raise LedgerCorrupt(
            f"{chain.findings[0]}; stop training on this dataset and restore its ledger"
        )
    return chain


def verify_ledger(store: ObjectStore, public_key: str) -> list[str]:
    """Return what does not hold in a ledger, in order; empty if all of it does."""
    return _checked(store, public_key).findings


def _checked(store: ObjectStore, public_key: str) -> Chain:
    found = store.list(keys.LEDGER)
    if not found:
        none = "there is no ledger: no genesis; `fedloom site init` writes one, once"
        return Chain([], NO_ENTRY, [none])
    entries: list[LedgerEntry] = []
    findings: list[str] = []
    previous = NO_ENTRY
    for seq, key in enumerate(found, start=1):
        if key != keys.ledger_entry(seq):
            findings.append(f"ledger entry {seq} is missing: found {key} in its place")
            break
        data = store.get(key)
        try:
            entry = from_bytes(LedgerEntry, data, what=key)
        except ObjectCorrupt as error:
            findings.append(f"ledger entry {seq} cannot be read: {error}")
            break
        findings += [f"ledger entry {seq} {fault}" for fault in _faults(entry, entries, previous)]
        if not verify_signature(entry, public_key):
            findings.append(f"ledger entry {seq} is not signed by the site's key")
        entries.append(entry)
        previous = sha256_hex(data)
    return Chain(entries, previous, findings)


def _faults(entry: LedgerEntry, before: Sequence[LedgerEntry], previous: str) -> list[str]:
    faults = []
    if entry.seq != len(before) + 1:
        faults.append(f"says it is number {entry.seq}")
    if entry.previous_sha256 != previous:
        faults.append("does not follow the entry before it")
    if (entry.kind == "genesis") != (not before):
        faults.append(f"is a {entry.kind} out of place")
    if before and (entry.dataset, entry.unit) != (before[0].dataset, before[0].unit):
        faults.append("is about another dataset or unit")
    if entry.kind == "reserve" and _reserve_of(before, entry.campaign_digest, entry.round):
        faults.append("charges a round for the second time")
    if entry.kind == "commit" and not _commits_one_reserve(entry, before):
        faults.append("commits no open reserve")
    return faults


def _commits_one_reserve(entry: LedgerEntry, before: Sequence[LedgerEntry]) -> bool:
    if any(other.reserve_seq == entry.reserve_seq for other in before):
        return False
    reserve = _reserve_of(before, entry.campaign_digest, entry.round)
    return (
        reserve is not None
        and reserve.seq == entry.reserve_seq
        and reserve.plan_sha256 == entry.plan_sha256
    )


def _reserve_of(
    entries: Sequence[LedgerEntry], campaign_digest: str | None, round_number: int | None
) -> LedgerEntry | None:
    for entry in entries:
        own = (entry.campaign_digest, entry.round)
        if entry.kind == "reserve" and own == (campaign_digest, round_number):
            return entry
    return None
