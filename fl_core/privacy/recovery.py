"""Put a ledger together again from what it and its witnesses hold.

After a restore the ledger lacks entries. Those that a witness still holds are taken back as they
are, signature and chain checked. What nobody holds is charged as if it had happened: every plan
that names the site and is not on the ledger. Where the ledger was written on after a restore there
are two branches; the longer one stays the ledger, and the charges of the other are added, since
either may have paid for a draw that left. All of this goes into one signed entry of kind
``recovered``, so the ledger verifies afterwards, and its witnesses accept it (SOUNDNESS, rule 14).
An entry beyond the reach of a ledger (``held_entries``) is charged and set aside like a branch.

Where the site's key was lost, the same work is done with a new key that hands the ledger over to
itself first: the ledger goes on, and nothing that was spent is forgotten with the key.

Nothing is written here: the caller first closes the exchanges of what was lost, then writes.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fl_core.artifacts import keys
from fl_core.artifacts.documents import document_sha256, to_bytes
from fl_core.errors import LedgerCorrupt, PolicyRefused, WitnessUnavailable
from fl_core.privacy.held_entries import (
    MARGIN,
    Held,
    LostLedger,
    collect,
    keys_of,
    within_reach,
)
from fl_core.privacy.ledger_documents import (
    MAX_ENTRY_BYTES,
    LedgerEntry,
    LostCharge,
    LostNumbers,
    LostRange,
)
from fl_core.privacy.ledger_keys import signer_of
from fl_core.privacy.witness import WitnessedStore, held_sequences
from fl_core.updates.records import LAST_SEQUENCE
from fl_core.updates.signing import sign

__all__ = [
    "MARGIN",
    "LostLedger",
    "Owed",
    "Recovery",
    "Unapproved",
    "append_missing",
    "charges_of",
    "find_recovery",
]


@dataclass(frozen=True, slots=True)
class Unapproved:
    """A campaign that names the site, and that nothing at the site shows to be approved.

    Attributes:
        campaign: Its id.
        digest: Its digest; None where it cannot be read.
        plans: Its rounds whose plan names the site, with their event on this ledger.
        is_denied: The site's operator says that it was never approved.
    """

    campaign: str
    digest: str | None = None
    plans: tuple[LostCharge, ...] = ()
    is_denied: bool = False


@dataclass(frozen=True, slots=True)
class Owed:
    """What is charged where nobody can tell.

    Attributes:
        plans: Every round whose plan names the site, with its event on this ledger.
        committed: Those of them whose update lies in the site's outbox: charged in any case.
        unapproved: Campaigns that a person has to decide on, unless the ledger knows them: an
            approval may have been lost, or a coordinator may have made them up.
    """

    plans: tuple[LostCharge, ...] = ()
    committed: tuple[LostCharge, ...] = ()
    unapproved: tuple[Unapproved, ...] = ()


@dataclass(frozen=True, slots=True)
class Recovery:
    """A ledger as it will be.

    Attributes:
        entries: Bytes of every entry by sequence number, the new one included.
        imported: Sequence numbers that the ledger's own store lacks and a witness holds.
        replaced: Sequence numbers at which the own store holds an entry of another branch, or
            something that is no entry; a fresh store is to be filled then.
        strange: Keys in the own store that no ledger reads; a fresh store is to be filled then too.
        recovered: The new entry, or None if nothing had to be charged.
        rotated: The entry that hands the ledger to a new key, or None if none was lost.
    """

    entries: dict[int, bytes]
    imported: tuple[int, ...]
    replaced: tuple[int, ...]
    strange: tuple[str, ...] = ()
    recovered: LedgerEntry | None = None
    rotated: LedgerEntry | None = None

    @property
    def is_needed(self) -> bool:
        """Whether anything changes."""
        return bool(self.imported or self.needs_fresh_store or self.recovered or self.rotated)

    @property
    def needs_fresh_store(self) -> bool:
        """Whether the own store holds what must not stand in a ledger."""
        return bool(self.replaced or self.strange)


def find_recovery(
    ledger: LostLedger,
    witnesses: Sequence[WitnessedStore],
    owed: Owed,
    *,
    now: datetime,
    assume_lost: bool = False,
) -> Recovery:
    """Work out what a ledger must be after a restore; nothing is written.

    Args:
        ledger: What is left of it.
        witnesses: Who may hold its entries.
        owed: What to charge for what nobody holds.
        now: Time of the new entry.
        assume_lost: Go on without the witnesses that are away, and charge all plans that are not on
            the ledger for what they may hold.

    Raises:
        WitnessUnavailable: A witness of the site's own is away and ``assume_lost`` is off.
        PolicyRefused: Something is lost, and nothing shows whether a campaign was approved.
        LedgerCorrupt: Nobody holds a genesis signed by this key or one before it, so there is
            nothing to build on; the key has handed the ledger to another one; or what would have
            to be written is more than a ledger can name or a witness takes.
    """
    held, away = collect(ledger, witnesses)
    if away and not assume_lost:
        raise WitnessUnavailable(
            f"{', '.join(away)} cannot be read, and may hold entries that nobody else does; "
            "bring it back",
            hint="if it is lost for good, --assume-lost charges every plan not on the ledger",
        )
    trunk = _trunk(within_reach(held))
    if not trunk or trunk[0].entry.kind != "genesis":
        raise LedgerCorrupt(
            f"nobody holds a genesis of dataset {ledger.dataset!r}, unit {ledger.unit!r}, signed "
            "by this site's key; a ledger is recovered with the key that signs it, or, where that "
            "is lost, by `fedloom site rotate --lost-key`"
        )
    _require_room(ledger, trunk)
    entries = {each.entry.seq: each.data for each in trunk}
    sound = {each.entry.seq: each.data for each in held if each.is_local}
    # Whatever else stands in the store is of another branch, or damaged.
    occupied = held_sequences(ledger.store, keys.LEDGER)
    recovery = Recovery(
        entries=entries,
        imported=tuple(seq for seq in sorted(entries) if seq not in occupied),
        replaced=tuple(
            seq for seq in sorted(occupied) if seq not in entries or sound.get(seq) != entries[seq]
        ),
        strange=tuple(
            sorted(set(ledger.store.list(keys.LEDGER)) - {keys.ledger_entry(s) for s in occupied})
        ),
    )
    findings = _Findings(held, trunk, owed, bool(away) and assume_lost)
    rotated = _rotated(ledger, findings, now=now)
    recovered = _recovered(ledger, findings, after=rotated, now=now)
    new = {each.seq: to_bytes(each) for each in (rotated, recovered) if each is not None}
    return replace(recovery, entries=entries | new, recovered=recovered, rotated=rotated)


def _trunk(held: Sequence[Held]) -> list[Held]:
    """Return the branch that goes furthest, down to its genesis, in order."""
    by_sha256 = {each.sha256: each for each in held}
    seqs = [each.entry.seq for each in held]
    best = list(itertools.accumulate(held, _better))
    trunk: list[Held] = []
    current = best[-1] if best else None
    while current is not None:
        trunk.append(current)
        below = by_sha256.get(current.entry.previous_sha256)
        # One that says it follows a later entry would lead round in a circle.
        if below is None or below.entry.seq >= current.entry.seq:
            # Lost: go on with what is left further down.
            lower = bisect.bisect_left(seqs, current.entry.seq)
            below = best[lower - 1] if lower else None
        current = below
    return trunk[::-1]


def _require_room(ledger: LostLedger, trunk: Sequence[Held]) -> None:
    top = trunk[-1].entry.seq
    # A change of keys and a recovery, after the numbers that are left free.
    if top + MARGIN + 2 > LAST_SEQUENCE:
        raise LedgerCorrupt(
            f"the ledger of {ledger.dataset!r} goes up to entry {top}, and entries are numbered up "
            f"to {LAST_SEQUENCE}, so there is no room to recover it; what this site did not write "
            "itself must be taken away from its folder and its own witnesses first"
        )


def _better(one: Held, other: Held) -> Held:
    return max(one, other, key=_preference)


def _preference(held: Held) -> tuple[bool, int, bool, bool, str]:
    # A branch on which an older key went on is given up, however long it is.
    return held.is_in_force, held.entry.seq, held.is_witnessed, held.is_local, held.sha256


@dataclass(frozen=True, slots=True)
class _Findings:
    """What a new entry has to account for."""

    held: Sequence[Held]
    trunk: Sequence[Held]
    owed: Owed
    is_blind: bool

    def lost(self) -> list[LostRange]:
        """Return the sequence numbers that nobody holds and no earlier recovery named."""
        seqs = [each.entry.seq for each in self.trunk]
        named = LostNumbers(each.entry for each in self.trunk)
        gaps = [
            LostRange(first=before + 1, last=after - 1)
            for before, after in itertools.pairwise(seqs)
            if after > before + 1
        ]
        lost = [gap for gap in gaps if not named.has_all(gap.first, gap.last)]
        top = seqs[-1]
        return [*lost, LostRange(first=top + 1, last=top + MARGIN)] if self.is_blind else lost

    def next_place(self) -> tuple[int, str]:
        """Return the sequence number after the trunk, and the hash that it follows."""
        top = self.trunk[-1]
        return top.entry.seq + (MARGIN if self.is_blind else 0) + 1, top.sha256

    def aside(self) -> list[Held]:
        """Return the entries of other branches that count and that no earlier recovery named."""
        on_trunk = {each.sha256 for each in self.trunk}
        named = {sha256 for each in self.trunk for sha256 in each.entry.set_aside or ()}
        recoveries = [each.entry for each in self.trunk if each.entry.kind == "recovered"]
        charged = [(LostNumbers([entry]), entry.charges or ()) for entry in recoveries]
        # What no witness acknowledged was never trained; a witness that is away may have.
        return [
            each
            for each in self.held
            if each.sha256 not in on_trunk | named
            and (each.is_witnessed or self.is_blind)
            and not _was_charged_as_lost(each.entry, charged)
        ]


def _was_charged_as_lost(
    entry: LedgerEntry, charged: Sequence[tuple[LostNumbers, Sequence[LostCharge]]]
) -> bool:
    """Say whether a recovery took an entry for lost that has turned up since."""
    return any(
        entry.seq in lost and all(charge in charges for charge in charges_of(entry))
        for lost, charges in charged
    )


def _rotated(ledger: LostLedger, findings: _Findings, *, now: datetime) -> LedgerEntry | None:
    top = findings.trunk[-1]
    if top.is_in_force:
        return None
    last = signer_of(top.entry, sorted(keys_of(ledger, findings.held)))
    seq, previous_sha256 = findings.next_place()
    entry = LedgerEntry(
        seq=seq,
        dataset=ledger.dataset,
        unit=ledger.unit,
        kind="rotated",
        old_key=last,
        new_key=ledger.public_key,
        time=now,
        previous_sha256=previous_sha256,
    )
    return sign(entry, ledger.key)


def _recovered(
    ledger: LostLedger, findings: _Findings, *, after: LedgerEntry | None, now: datetime
) -> LedgerEntry | None:
    lost, aside = findings.lost(), findings.aside()
    plans = _plans_owed(findings) if lost else ()
    charges = _charges(findings, plans=plans, aside=aside)
    if not (lost or aside or charges):
        return None
    seq, previous_sha256 = findings.next_place()
    if after is not None:
        seq, previous_sha256 = after.seq + 1, document_sha256(after)
    entry = LedgerEntry(
        seq=seq,
        dataset=ledger.dataset,
        unit=ledger.unit,
        kind="recovered",
        lost=tuple(lost),
        charges=tuple(charges),
        set_aside=tuple(each.sha256 for each in aside),
        time=now,
        previous_sha256=previous_sha256,
    )
    signed = sign(entry, ledger.key)
    if (length := len(to_bytes(signed))) > MAX_ENTRY_BYTES:
        raise LedgerCorrupt(
            f"the recovery of {ledger.dataset!r} would charge {len(charges)} rounds and set "
            f"{len(aside)} entries aside in one entry of {length} bytes, and a witness takes "
            f"{MAX_ENTRY_BYTES} at most",
            hint="whoever has the signing key may have filled a witness: take one that is not the "
            "site's own out of policy.toml, then recover, then change the key",
        )
    return signed


def _plans_owed(findings: _Findings) -> tuple[LostCharge, ...]:
    """Return the plans of all campaigns that the site agreed to, as far as anybody can tell."""
    held = [each.entry for each in findings.held]
    known = {entry.campaign_digest for entry in held if entry.campaign_digest is not None}
    known |= {charge.campaign_digest for entry in held for charge in entry.charges or ()}
    plans, unclear = list(findings.owed.plans), []
    for each in findings.owed.unapproved:
        if each.digest in known:
            plans += each.plans
        elif not each.is_denied:
            unclear.append(each.campaign)
    if unclear:
        raise PolicyRefused(
            "entries are lost, and nothing here shows that this site approved "
            f"{', '.join(unclear)}, whose plans would be charged for good; its operator can tell",
            hint="`--never-approved ID` where it was never approved, `--approved ID` where its "
            "approval may have been lost too",
        )
    return tuple(plans)


def _charges(
    findings: _Findings, *, plans: Sequence[LostCharge], aside: Sequence[Held]
) -> list[LostCharge]:
    # Another branch's charge counts also where the ledger has one for the same round: each may have
    # paid for a draw of its own.
    charges = [charge for each in aside for charge in charges_of(each.entry)]
    trunk = [each.entry for each in findings.trunk]
    voided = {entry.reserve_seq for entry in trunk if entry.kind == "void"}
    # A reserve that the trunk has taken back pays for nothing, though another branch may have
    # trained for it: its commit says so.
    kept = [entry for entry in trunk if entry.seq not in voided]
    trained = {(e.entry.campaign_digest, e.entry.round) for e in aside if e.entry.kind == "commit"}
    taken_back = [charge for entry in trunk if entry.seq in voided for charge in charges_of(entry)]
    known = {
        (charge.campaign_digest, charge.round)
        for charge in (*charges, *(charge for entry in kept for charge in charges_of(entry)))
    }
    for charge in taken_back:
        exchange = (charge.campaign_digest, charge.round)
        if exchange in trained - known:
            known.add(exchange)
            charges.append(charge)
    for charge in (*findings.owed.committed, *plans):
        if (charge.campaign_digest, charge.round) not in known:
            known.add((charge.campaign_digest, charge.round))
            charges.append(charge)
    return charges


def charges_of(entry: LedgerEntry) -> tuple[LostCharge, ...]:
    """Return what an entry charges, a reserve in the form of a recovery's charges."""
    if entry.kind != "reserve":
        return entry.charges or ()
    fields = {"campaign_digest", "round", "plan_sha256", "event"}
    return (LostCharge.model_validate({name: getattr(entry, name) for name in fields}),)


def append_missing(ledger: LostLedger, recovery: Recovery) -> None:
    """Write what the ledger's own store lacks, lowest first; safe to repeat.

    Raises:
        LedgerCorrupt: The store holds another entry in a place that is needed; a fresh store is
            to be filled then.
    """
    for seq, data in sorted(recovery.entries.items()):
        key = keys.ledger_entry(seq)
        if not ledger.store.put_once(key, data) and ledger.store.get(key) != data:
            raise LedgerCorrupt(
                f"the store of {ledger.dataset!r} holds another entry {seq}; fill a fresh one"
            )
