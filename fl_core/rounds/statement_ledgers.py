"""Whether what sites and federation say about their budgets holds against charges and copies.

A figure must follow from its own events, the events must hold all that the campaign charged, and
where the store keeps copies of the ledger's signed entries, as a witness does, the events and the
head must be those of the copies: a site that leaves an older charge out contradicts itself.
"""

from collections import Counter
from collections.abc import Sequence

from fl_core.artifacts import keys
from fl_core.artifacts.below import Below
from fl_core.artifacts.documents import from_bytes, read_document
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.guarantees import SITE
from fl_core.campaign.roster import read_roster
from fl_core.errors import ObjectCorrupt, PrivacyError
from fl_core.privacy.events import merged
from fl_core.privacy.federation import identity
from fl_core.privacy.forecast import rounds_left
from fl_core.privacy.ledger_documents import MAX_ENTRY_BYTES, LedgerEntry
from fl_core.privacy.ledger_entries import Chain, ChainReader, read_ledger
from fl_core.privacy.stated_budget import added_up_events, require_follows, stated_policy
from fl_core.privacy.witness import held_sequences
from fl_core.rounds.budgets import budgets_until, stated_until
from fl_core.rounds.charging import read_federation_budget
from fl_core.rounds.documents import RoundCharge, RoundPlan
from fl_core.updates.records import BudgetStatement, Charge, EventRecord, Spending

Charges = Sequence[RoundCharge]


def require(complaint: str, *, holds: bool) -> None:
    """Refuse stored documents that contradict each other.

    Raises:
        ObjectCorrupt: ``holds`` is false.
    """
    if not holds:
        raise ObjectCorrupt(complaint)


def check_budgets(
    assembly: Assembly, store: ObjectStore, *, round_number: int, charges: Charges
) -> None:
    """Check the sites' statements against their own events and against what was charged.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        round_number: The version's round; statements up to it count.
        charges: What was charged in every round so far, verified.

    Raises:
        ObjectCorrupt: With the first thing that does not hold.
    """
    stated = stated_until(store, assembly.campaign.id, round_number=round_number)
    for site, known in stated.items():
        budget = known.statement
        if budget is None:
            raise ObjectCorrupt(
                f"the budget statement of {site!r} does not count: {known.complaint}"
            )
        try:
            require_follows(budget)
            _require_charges(budget, charges)
            _require_rounds_left(assembly, budget)
        except PrivacyError as error:
            raise ObjectCorrupt(f"the budget statement of {site!r} {error}") from error


def _require_charges(budget: BudgetStatement, charges: Charges) -> None:
    until = [charge for charge in charges if charge.round <= budget.round]
    rows = [charge.sites[budget.site] for charge in until if budget.site in charge.sites]
    _require_covered(budget, rows)
    whole = [charge.clients[budget.site] for charge in until if budget.site in charge.clients]
    if whole and budget.client is None:
        raise PrivacyError("says nothing of its whole data, on which it charged this campaign")
    if budget.client is not None:
        _require_covered(budget.client, whole)


def _require_rounds_left(assembly: Assembly, budget: BudgetStatement) -> None:
    levels: list[tuple[Spending | None, str, EventRecord | None]] = [
        (budget, budget.unit, assembly.row_event),
        (budget.client, SITE, assembly.site_event),
    ]
    for spending, unit, event in levels:
        if spending is None or event is None:
            continue
        policy = stated_policy(spending, dataset=budget.dataset, unit=unit)
        left = rounds_left(policy, spending.events, event)
        if left != spending.rounds_left:
            raise PrivacyError(f"states {spending.rounds_left} rounds left, it has {left}")


def _require_covered(spending: Spending, charged: Sequence[Charge]) -> None:
    last = max((charge.ledger_seq for charge in charged), default=0)
    if spending.ledger_seq < last:
        raise PrivacyError(
            f"covers its ledger to entry {spending.ledger_seq}, it charged entry {last}"
        )
    if _counts([charge.event for charge in charged]) - _counts(spending.events):
        raise PrivacyError("leaves out events that it charged for this campaign")


def _counts(events: Sequence[EventRecord]) -> Counter[str]:
    return Counter({base.model_dump_json(): count for base, count in merged(events)})


def check_copies(assembly: Assembly, store: ObjectStore, *, round_number: int) -> str:
    """Hold the sites' statements against the copies of their ledgers in the campaign's store.

    Returns:
        For how many budgets there was a copy, for people.

    Raises:
        ObjectCorrupt: A site has signed two different things.
    """
    stated = budgets_until(store, assembly.campaign.id, round_number=round_number)
    compared = total = 0
    for site, budget in stated.items():
        plan = read_document(store, keys.plan(assembly.campaign.id, budget.round), RoundPlan)
        entry = read_roster(store, plan.roster_version).entry(site)
        levels: list[tuple[str, Spending]] = [(budget.unit, budget)]
        levels += [(SITE, budget.client)] if budget.client is not None else []
        for unit, spending in levels:
            total += 1
            prefix = keys.witness(site, budget.dataset, unit)
            copy = _copy_until(store, prefix, spending.ledger_seq)
            chain = ChainReader("" if entry is None else entry.signing_key).read(copy)
            # Whatever the site did not sign, or a recovery has set aside, says nothing about it.
            if chain.findings or not chain.entries or chain.entries[-1].seq != spending.ledger_seq:
                continue
            _require_same(spending, chain, what=f"the budget statement of {site!r}")
            compared += 1
    return f"{compared} of {total} budgets have a copy of their ledger in this store"


def _copy_until(store: ObjectStore, prefix: str, last: int) -> MemoryStore:
    """Return the copies up to one, or up to the first that is no entry: no chain goes on there."""
    copy = MemoryStore()
    for seq in sorted(seq for seq in held_sequences(store, prefix) if seq <= last):
        key = keys.witnessed_entry(prefix, seq)
        try:
            data = store.get(key, max_bytes=MAX_ENTRY_BYTES)
            from_bytes(LedgerEntry, data, what=key)
        except ObjectCorrupt:
            break
        copy.put_once(keys.ledger_entry(seq), data)
    return copy


def _require_same(spending: Spending, chain: Chain, *, what: str) -> None:
    require(
        f"{what} names another entry {spending.ledger_seq} of its ledger than the copy at the "
        "witness in this store, and both are signed by the site",
        holds=chain.head_sha256 == spending.ledger_head_sha256,
    )
    require(
        f"{what} states other events than its own signed ledger entries hold",
        holds=added_up_events(chain.events()) == spending.events,
    )


def check_federation(assembly: Assembly, store: ObjectStore, *, charges: Charges) -> None:
    """Check the federation's ledger, and what the coordinator says of it, under central ClientDp.

    Raises:
        ObjectCorrupt: A release that is not on it as it was charged, or a statement about it that
            does not hold.
        LedgerCorrupt: The ledger does not hold.
    """
    noise = assembly.central_noise
    if noise is None:
        return
    own = identity(store)
    if own is None:
        raise ObjectCorrupt("the store does not say whose key signs the federation's ledger")
    chain = read_ledger(Below(store, keys.FEDERATION), own.public_key)
    for charge in charges:
        reserve, stated = chain.reserve_of(assembly.digest, charge.round), charge.federation
        require(
            f"the release of round {charge.round} is not on the federation's ledger as the "
            "campaign's noise asks",
            holds=stated is not None
            and reserve is not None
            and (reserve.seq, reserve.event) == (stated.ledger_seq, stated.event)
            and reserve.event == noise.event,
        )
        budget = read_federation_budget(assembly, store, charge.round)
        if budget is None:
            raise ObjectCorrupt(f"the federation states nothing for round {charge.round}")
        _require_federation_budget(budget, chain)


def _require_federation_budget(budget: BudgetStatement, chain: Chain) -> None:
    what = f"the federation's statement of round {budget.round}"
    try:
        require_follows(budget)
    except PrivacyError as error:
        raise ObjectCorrupt(f"{what} {error}") from error
    until = [entry for entry in chain.entries if entry.seq <= budget.ledger_seq]
    events = [e.event for e in until if e.event is not None and not chain.is_voided(e)]
    events += [lost.event for entry in until for lost in entry.charges or ()]
    require(
        f"{what} states other events than its ledger holds",
        holds=added_up_events(events) == budget.events,
    )
