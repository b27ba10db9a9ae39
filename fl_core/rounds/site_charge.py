"""What one round costs a site, reserved before training and committed after it.

A site has one ledger for a unit of its rows and, where its policy limits the site as a whole, a
second one whose unit is the site. Both are asked before either is charged, so that a refusal by
one costs nothing on the other; both are charged before the first private forward pass. Whatever a
crash leaves in between is found by the next try, which gets the same reserves.
"""

from dataclasses import dataclass

from fl_core.assembly import Assembly
from fl_core.errors import LedgerCorrupt, PolicyRefused
from fl_core.privacy.budget import spend, verdict
from fl_core.privacy.ledger_entries import LedgerEntry
from fl_core.privacy.stated_budget import Budget
from fl_core.rounds.documents import RoundPlan
from fl_core.rounds.site import Site
from fl_core.updates.records import NonPrivateEvent


@dataclass(frozen=True, slots=True)
class Reserves:
    """A round's charges at a site.

    Attributes:
        row: On the ledger of a unit of its rows.
        site: On the ledger of its whole data; None where nothing is charged there.
    """

    row: LedgerEntry
    site: LedgerEntry | None = None


def row_budget(site: Site, assembly: Assembly) -> Budget:
    """Return the budget of one unit of the site's rows, with what a round charges on it."""
    return Budget(site.ledger, site.policy, assembly.row_event or NonPrivateEvent())


def site_budget(site: Site, assembly: Assembly) -> Budget | None:
    """Return the budget of the site's whole data; None where the campaign charges nothing there.

    Raises:
        PolicyRefused: The campaign does, and the site keeps no such ledger.
    """
    if assembly.site_event is None:
        return None
    policy = site.policy.client_policy()
    if policy is None or site.client_ledger is None:
        raise PolicyRefused(
            "policy has no section [client] and the campaign has local noise on whole updates; "
            "add it with epsilon and delta if the site agrees"
        )
    return Budget(site.client_ledger, policy, assembly.site_event)


def reserve_round(site: Site, assembly: Assembly, plan: RoundPlan, *, plan_sha256: str) -> Reserves:
    """Charge a round on every ledger of the site that it costs something on; safe to repeat.

    Raises:
        BudgetExhausted: One of them would pass its limit.
        PolicyRefused: The policy does not allow what would be charged, or the round was charged
            for another plan.
        LedgerCorrupt: A ledger does not hold.
    """
    row, whole = row_budget(site, assembly), site_budget(site, assembly)
    if whole is None:
        return Reserves(_reserve(row, assembly, plan, plan_sha256))
    for budget in (row, whole):
        _require_affordable(budget, assembly, plan)
    return Reserves(*(_reserve(budget, assembly, plan, plan_sha256) for budget in (row, whole)))


def work_out_next(site: Site, assembly: Assembly) -> None:
    """Work out what another round's charge comes to, so that its reserve finds the answer cached.

    Composing privacy losses takes a site longer than all else that a round asks of it besides
    training, and needs no plan. Charges nothing, refuses nothing.

    Raises:
        PrivacyError: The round's event cannot be accounted for under the policy.
        PolicyRefused: The campaign charges the whole site, and the site keeps no such ledger.
        LedgerCorrupt: A ledger does not hold.
    """
    for budget in (row_budget(site, assembly), site_budget(site, assembly)):
        if budget is not None:
            spend(budget.policy, [*budget.ledger.chain().events(), budget.event])


def commit_round(site: Site, assembly: Assembly, plan: RoundPlan) -> None:
    """Note on every charged ledger that the round's update is in the outbox; safe to repeat.

    Raises:
        LedgerCorrupt: A charge is not there: an older ledger was restored, and nothing may leave.
    """
    for budget in (row_budget(site, assembly), site_budget(site, assembly)):
        if budget is None:
            continue
        reserve = budget.ledger.chain().reserve_of(assembly.digest, plan.round)
        if reserve is None:
            raise LedgerCorrupt(
                f"the outbox holds an update of round {plan.round}, its charge is not on the "
                f"ledger of {budget.ledger.dataset!r}, unit {budget.ledger.unit!r}; an older "
                "ledger was restored, so nothing is sent"
            )
        budget.ledger.commit(reserve)


def _require_affordable(budget: Budget, assembly: Assembly, plan: RoundPlan) -> None:
    chain = budget.ledger.chain()
    if chain.reserve_of(assembly.digest, plan.round) is None:
        verdict(budget.policy, chain.events(), budget.event)


def _reserve(budget: Budget, assembly: Assembly, plan: RoundPlan, plan_sha256: str) -> LedgerEntry:
    return budget.ledger.reserve(
        campaign_digest=assembly.digest,
        round_number=plan.round,
        plan_sha256=plan_sha256,
        event=budget.event,
        require=lambda events: verdict(budget.policy, events, budget.event),
    )
