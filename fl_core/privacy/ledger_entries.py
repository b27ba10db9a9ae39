"""Reading a ledger, and the check that a chain of entries holds.

Reading needs the public key in force only, so a coordinator, an auditor or a backup can verify a
copy: a ledger that was handed from key to key says so itself (``ledger_keys``). The check is the
same everywhere: sequence, hashes, signatures, one dataset, one charge per round, one ending per
reserve. A gap holds only where a later signed recovery names it and charges for it. A chain cannot
show that its end was cut off; witnesses outside the site can.

A reader remembers what it has checked and reads on from there, so that a charge costs the same in
round 1,000 as in round 10.
"""

import re
import threading
from dataclasses import dataclass, field, replace

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, sha256_hex, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import LedgerCorrupt, ObjectCorrupt, ObjectMissing
from fl_core.privacy.ledger_documents import (
    NO_ENTRY,
    LedgerEntry,
    LostCharge,
    LostNumbers,
    LostRange,
)
from fl_core.privacy.ledger_keys import first_key, is_of_keys, is_signed_under, keys_before
from fl_core.updates.records import EventRecord

__all__ = [
    "NO_ENTRY",
    "Chain",
    "ChainReader",
    "LedgerEntry",
    "LostCharge",
    "LostRange",
    "read_ledger",
]

_KEY = re.compile(re.escape(keys.LEDGER) + r"([0-9]{6,9})\.json")


@dataclass(frozen=True, slots=True)
class Chain:
    """A ledger as it was read.

    Attributes:
        entries: In order, up to the first that cannot be read.
        head_sha256: Hash of the last one's stored bytes.
        findings: What does not hold, in order; empty if all of it does.
        charges: The entry that charged a round, by campaign digest and round.
        endings: Commit or void by the sequence number of its reserve.
        recoveries: The entries among them that charge what was lost.
        signers: The keys that signed it, one after the other, hex; the last is in force.
    """

    entries: list[LedgerEntry] = field(default_factory=list)
    head_sha256: str = NO_ENTRY
    findings: list[str] = field(default_factory=list)
    charges: dict[tuple[str, int], LedgerEntry] = field(default_factory=dict)
    endings: dict[int, LedgerEntry] = field(default_factory=dict)
    recoveries: list[LedgerEntry] = field(default_factory=list)
    signers: tuple[str, ...] = ()

    def events(self) -> list[EventRecord]:
        """Return the events of all charges, committed or not: a reserve counts as spent.

        Voided reserves are left out; what a recovery charged is in.
        """
        found: list[EventRecord] = []
        for entry in self.entries:
            if entry.event is not None and not self.is_voided(entry):
                found.append(entry.event)
            elif entry.kind == "recovered":
                found += [lost.event for lost in entry.charges or ()]
        return found

    def set_aside(self) -> frozenset[str]:
        """Return the hashes of entries that recoveries have charged and given up."""
        return frozenset(sha256 for each in self.recoveries for sha256 in each.set_aside or ())

    def reserve_of(self, campaign_digest: str, round_number: int) -> LedgerEntry | None:
        """Return the entry that charged one round, a reserve or a recovery, or None."""
        return self.charges.get((campaign_digest, round_number))

    def is_voided(self, reserve: LedgerEntry) -> bool:
        """Say whether a reserve was taken back."""
        ending = self.endings.get(reserve.seq)
        return ending is not None and ending.kind == "void"

    def open_reserves(self) -> list[LedgerEntry]:
        """Return the reserves that were neither committed nor voided."""
        reserves = (entry for entry in self.entries if entry.kind == "reserve")
        return [entry for entry in reserves if entry.seq not in self.endings]


class ChainReader:
    """Reads one ledger again and again; what it has checked is not read again.

    The last checked entry is read again each time, and through its hash it stands for all before
    it. Whatever else looks different from before (an entry gone, another number, a recovery) makes
    it check the whole ledger afresh. Threads may share a reader.

    Args:
        public_key: Key that signs the ledger now, hex.
    """

    def __init__(self, public_key: str) -> None:
        self._public_key = public_key
        self._lock = threading.Lock()
        self._known: list[str] = []
        self._chain = Chain()

    def read(self, store: ObjectStore, *, is_followed: bool = False) -> Chain:
        """Return the ledger as it is now; the caller may keep what it gets.

        Args:
            store: The ledger's store.
            is_followed: The caller has read it before with this reader: only what may have been
                added at the end is looked for, without a listing that grows with the ledger.
        """
        with self._lock:
            is_known = is_followed and bool(self._known)
            found = self._followed(store) if is_known else store.list(keys.LEDGER)
            if not self._read_on(store, found):
                found = store.list(keys.LEDGER)
                self._known, self._chain = found, _checked(store, found, self._public_key)
            chain = self._chain
            return Chain(
                list(chain.entries),
                chain.head_sha256,
                list(chain.findings),
                dict(chain.charges),
                dict(chain.endings),
                list(chain.recoveries),
                chain.signers,
            )

    def _followed(self, store: ObjectStore) -> list[str]:
        found = list(self._known)
        seq = self._chain.entries[-1].seq
        while _is_there(store, key := keys.ledger_entry(seq := seq + 1)):
            found.append(key)
        return found

    def _read_on(self, store: ObjectStore, found: list[str]) -> bool:
        """Check what was added at the end; return False where only a full check will do."""
        known, chain = self._known, self._chain
        # What is added goes into the same containers: whatever is raised below, all is read afresh.
        self._known = []
        if not known or chain.findings or found[: len(known)] != known:
            return False
        try:
            head = store.get(known[-1])
        except ObjectMissing:
            return False
        if sha256_hex(head) != chain.head_sha256:
            return False
        for key in found[len(known) :]:
            entry, data = _entry_at(store, key)
            if entry is None or entry.kind == "recovered":
                return False
            chain = _extended(chain, entry, data, _Context(key, LostNumbers(())))
            if chain.findings:
                return False
        is_in_force = chain.signers[-1] == self._public_key
        if is_in_force:
            self._known, self._chain = found, chain
        return is_in_force


def read_ledger(store: ObjectStore, public_key: str) -> Chain:
    """Return a ledger that ``public_key`` (hex) signs now, every entry checked.

    Raises:
        LedgerCorrupt: With the first entry that does not hold; or there is no genesis.
    """
    return require_sound(ChainReader(public_key).read(store))


def require_sound(chain: Chain) -> Chain:
    """Return a chain that holds.

    Raises:
        LedgerCorrupt: With the first entry that does not hold; or there is no genesis.
    """
    if chain.findings:
        raise LedgerCorrupt(
            f"{chain.findings[0]}; stop training on this dataset and restore its ledger"
        )
    return chain


@dataclass(frozen=True, slots=True)
class _Context:
    """What one entry is held against, beside the chain before it."""

    key: str
    lost: LostNumbers


def _checked(store: ObjectStore, found: list[str], public_key: str) -> Chain:
    if not found:
        none = "there is no ledger: no genesis; `fedloom site init` writes one, once"
        return Chain(findings=[none])
    read = [(key, *_entry_at(store, key)) for key in found]
    entries = [entry for _, entry, _ in read if entry is not None]
    known = keys_before(entries, [public_key])
    lost = LostNumbers(
        each for each in entries if each.kind == "recovered" and is_of_keys(each, known)
    )
    chain = Chain(signers=(first_key(entries, public_key),))
    for key, entry, data in read:
        seq = _seq_of(key)
        last = chain.entries[-1].seq if chain.entries else 0
        context = _Context(key, lost)
        if seq is None or seq <= last or not lost.has_all(last + 1, seq - 1):
            chain.findings.append(f"ledger entry {last + 1} is missing: found {key} in its place")
            break
        if entry is None:
            chain.findings.append(f"ledger entry {seq} cannot be read: {data.decode()}")
            break
        chain = _extended(chain, entry, data, context)
    if not chain.findings and chain.signers[-1] != public_key:
        chain.findings.append(
            f"the ledger ends under key {chain.signers[-1][:16]}, expected {public_key[:16]}: "
            "a change of keys was not finished (`fedloom site rotate --finish`), or an older key "
            "or ledger was put back"
        )
    return chain


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.get(key)
    except ObjectMissing:
        return False
    return True


def _entry_at(store: ObjectStore, key: str) -> tuple[LedgerEntry | None, bytes]:
    """Return an entry with its bytes, or None with the complaint in their place."""
    data = store.get(key)
    try:
        return from_bytes(LedgerEntry, data, what=key), data
    except ObjectCorrupt as error:
        return None, str(error).encode()


def _extended(chain: Chain, entry: LedgerEntry, data: bytes, context: _Context) -> Chain:
    """Return the chain with one entry more; its containers are reused."""
    faults = _faults(entry, chain, context)
    if to_bytes(entry) != data:
        faults.append("is not in the form that was signed")
    if not is_signed_under(entry, chain.signers[-1]):
        faults.append("is not signed by the site's key")
    number = _seq_of(context.key)
    chain.findings.extend(f"ledger entry {number} {fault}" for fault in faults)
    chain.entries.append(entry)
    if entry.kind == "reserve":
        chain.charges.setdefault((str(entry.campaign_digest), entry.round or 0), entry)
    for lost in entry.charges or ():
        chain.charges.setdefault((lost.campaign_digest, lost.round), entry)
    if entry.reserve_seq is not None:
        chain.endings.setdefault(entry.reserve_seq, entry)
    if entry.kind == "recovered":
        chain.recoveries.append(entry)
    signers = (*chain.signers, str(entry.new_key)) if entry.kind == "rotated" else chain.signers
    return replace(chain, head_sha256=sha256_hex(data), signers=signers)


def _faults(entry: LedgerEntry, before: Chain, context: _Context) -> list[str]:
    faults = []
    number = _seq_of(context.key)
    last = before.entries[-1].seq if before.entries else 0
    is_after_gap = entry.seq > last + 1
    if entry.seq != number:
        faults.append(f"says it is number {entry.seq}")
    # Nobody knows what an entry after a lost one followed; a recovery follows what is left.
    is_free = is_after_gap and entry.kind != "recovered"
    if entry.previous_sha256 != before.head_sha256 and not is_free:
        faults.append("does not follow the entry before it")
    if (entry.kind == "genesis") != (not before.entries):
        faults.append(f"is a {entry.kind} out of place")
    first = before.entries[0] if before.entries else entry
    if (entry.dataset, entry.unit) != (first.dataset, first.unit):
        faults.append("is about another dataset or unit")
    if entry.kind == "reserve" and _charge_of(before, entry) is not None:
        faults.append("charges a round for the second time")
    if entry.is_ending and not _ends_one_reserve(entry, before, context):
        faults.append(f"{entry.kind}s no open reserve")
    return faults


def _ends_one_reserve(entry: LedgerEntry, before: Chain, context: _Context) -> bool:
    seq = entry.reserve_seq or 0
    if seq in before.endings:
        return False
    if seq in context.lost:
        return True
    reserve = _charge_of(before, entry)
    return reserve is not None and reserve.seq == seq and reserve.plan_sha256 == entry.plan_sha256


def _charge_of(chain: Chain, entry: LedgerEntry) -> LedgerEntry | None:
    return chain.reserve_of(str(entry.campaign_digest), entry.round or 0)


def _seq_of(key: str) -> int | None:
    match = _KEY.fullmatch(key)
    return None if match is None else int(match[1])
