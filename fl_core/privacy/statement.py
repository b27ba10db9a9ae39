"""What is promised and spent, to whom: the privacy statement of a version.

Made from the frozen campaign, the sites' signed budgets, the charges of the round and the
federation's ledger, never written by hand; so it can be made again from the store and compared.
It is for a data-protection officer: what is protected, by how much, against whom, all that leaves a
site (a closed list: SOUNDNESS, rule 17), and as plainly what is not covered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import SITE, AdaptiveClip, ClientDp, GroupBounds, RecordDp
from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import LIVE_GRID, RECORD_GRID, epsilon
from fl_core.privacy.round_events import RoundCost, round_costs
from fl_core.privacy.stated_budget import Budget, both_shown, budget_statement, require_follows
from fl_core.privacy.statement_claims import claims, leaves_site, outside_claim
from fl_core.privacy.statement_documents import (
    AuditFinding,
    Clip,
    Guarantee,
    Noise,
    NotBelieved,
    PrivacyStatement,
    Promise,
    RawUpdates,
    SiteSpend,
    Spent,
)
from fl_core.privacy.statement_text import to_markdown
from fl_core.updates.records import (
    Accountant,
    BudgetStatement,
    Charge,
    SelfComposedEvent,
    Spending,
    Terms,
)

__all__ = [
    "Budget",
    "PrivacyStatement",
    "ReleaseFacts",
    "budget_statement",
    "privacy_statement",
    "to_markdown",
]


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """What the store says of the round that released a version.

    Attributes:
        adapter_sha256: Content hash of the version's adapter.
        contributors: Sites whose updates are in it.
        charges: What each of them charged for one unit of its rows.
        client_charges: What each charged for its whole data.
        federation: The federation's ledger up to the round's charge, under central ClientDp.
        raw_updates: Who could read un-noised updates, under central ClientDp.
        audits: Audits of the campaign.
    """

    adapter_sha256: str | None = None
    contributors: tuple[str, ...] = ()
    charges: Mapping[str, Charge] = field(default_factory=dict)
    client_charges: Mapping[str, Charge] = field(default_factory=dict)
    federation: Spending | None = None
    raw_updates: RawUpdates | None = None
    audits: tuple[AuditFinding, ...] = ()


NO_FACTS = ReleaseFacts()


def privacy_statement(
    campaign: Campaign,
    *,
    budgets: Mapping[str, BudgetStatement],
    round_number: int,
    facts: ReleaseFacts = NO_FACTS,
) -> PrivacyStatement:
    """Return the statement of the version that ``round_number`` released.

    Args:
        campaign: The locked campaign.
        budgets: The last statement of each site up to that round, signatures checked; sites that
            stated nothing are named as such, those whose figures do not follow likewise.
        round_number: From 1.
        facts: What the store says of the round.

    Raises:
        CampaignError: The campaign is not locked.
    """
    believed, refused = _believed(campaign, budgets)
    sites = tuple(_site_spend(budget, facts) for budget in believed)
    worst = max(sites, key=lambda s: s.record.epsilon, default=None)
    federation = None if facts.federation is None else _spent(facts.federation, SITE)
    whole = [s.client for s in sites if s.client is not None] + [federation] * bool(federation)
    holdout = campaign.evaluation.holdout
    return PrivacyStatement(
        campaign=campaign.id,
        campaign_digest=campaign.digest,
        round=round_number,
        adapter_sha256=facts.adapter_sha256,
        contributors=facts.contributors,
        guarantee=_guarantee(campaign),
        reason="" if campaign.privacy.none is None else campaign.privacy.none.reason,
        record=_promise(campaign, campaign.privacy.record, rounds=round_number),
        client=_promise(campaign, campaign.privacy.client, rounds=round_number),
        sites=sites,
        not_stated=_silent(campaign, budgets),
        not_believed=refused,
        worst_site=None if worst is None else worst.site,
        worst_epsilon=None if worst is None else worst.record.epsilon,
        worst_client_epsilon=max((s.epsilon for s in whole if s is not None), default=None),
        federation=federation,
        raw_updates=facts.raw_updates,
        upload_after_s=campaign.cohort.upload_after_s,
        holdout=holdout.name,
        holdout_sha256=str(holdout.sha256),
        audits=facts.audits,
        leaves_site=leaves_site(campaign),
        outside_claim=outside_claim(campaign),
        claims=claims(campaign),
    )


def _guarantee(campaign: Campaign) -> Guarantee:
    match campaign.privacy.record, campaign.privacy.client:
        case None, None:
            return "none"
        case _, None:
            return "record_dp"
        case None, _:
            return "client_dp"
        case _:
            return "record_dp and client_dp"


def _silent(campaign: Campaign, budgets: Mapping[str, BudgetStatement]) -> tuple[str, ...]:
    # Without a guarantee at the site nothing is charged there that could be stated.
    charged = any(cost.charged_by == "site" for cost in round_costs(campaign))
    return tuple(sorted(set(campaign.sites) - set(budgets))) if charged else ()


def _believed(
    campaign: Campaign, budgets: Mapping[str, BudgetStatement]
) -> tuple[list[BudgetStatement], tuple[NotBelieved, ...]]:
    if campaign.privacy.none is not None:
        return [], ()
    believed, refused = [], []
    for site, budget in sorted(budgets.items()):
        if site not in campaign.sites:
            continue
        try:
            require_follows(budget)
        except PrivacyError as error:
            refused.append(NotBelieved(site=site, complaint=f"{error}"))
        else:
            believed.append(budget)
    return believed, tuple(refused)


def _site_spend(budget: BudgetStatement, facts: ReleaseFacts) -> SiteSpend:
    return SiteSpend(
        site=budget.site,
        round=budget.round,
        dataset=budget.dataset,
        record=_spent(budget, budget.unit),
        client=None if budget.client is None else _spent(budget.client, SITE),
        charge=facts.charges.get(budget.site),
        client_charge=facts.client_charges.get(budget.site),
    )


def _spent(spending: Spending, unit: str) -> Spent:
    if spending.terms is None:
        raise PrivacyError("a statement without terms cannot be shown")
    # The recorded grid where PLD decides, so that its number is the stated one.
    grid = RECORD_GRID if spending.accountant == "pld" else LIVE_GRID
    pld, rdp = both_shown(spending.events, delta=spending.delta, grid=grid)
    return Spent(
        unit=unit,
        epsilon=spending.epsilon,
        epsilon_limit=spending.epsilon_limit,
        delta=spending.delta,
        accountant=spending.accountant,
        why=_why(spending.accountant, spending.terms),
        epsilon_pld=pld,
        epsilon_rdp=rdp,
        rounds_left=spending.rounds_left,
        events=spending.events,
        terms=spending.terms,
        ledger_seq=spending.ledger_seq,
        ledger_head_sha256=spending.ledger_head_sha256,
    )


def _why(accountant: str, terms: Terms) -> str:
    series = terms.series
    if accountant == "gdp":
        return (
            "Gaussian filter: every charge is Gaussian noise on all of a site at once, without "
            "sampling, so 1 / noise^2 adds up exactly, also when charges are chosen in view of "
            "results"
        )
    if accountant == "pld" and series is not None:
        return (
            f"PLD: all steps are of the one series approved before the first (noise "
            f"{series.noise_multiplier:g}, rate {series.sampling_rate:g}, at most "
            f"{series.max_steps} steps), from which campaigns may draw in view of results"
        )
    left = "" if series is None else "; at what the approved series leaves of delta"
    return (
        f"RDP at order {terms.rdp_order:g}, fixed before the first charge, over all events: a "
        f"filter that stays valid when events are chosen in view of results{left}"
    )


def _promise(
    campaign: Campaign, guarantee: RecordDp | ClientDp | None, *, rounds: int
) -> Promise | None:
    if guarantee is None:
        return None
    level = "record" if isinstance(guarantee, RecordDp) else "client"
    (cost,) = [c for c in round_costs(campaign) if c.level == level and c.unit is not None]
    events = [SelfComposedEvent(event=cost.event, count=rounds)]
    accountant: Accountant = "pld" if level == "record" else "gdp"
    pld, rdp = both_shown(events, delta=cost.delta, grid=RECORD_GRID)
    return Promise(
        level=cost.level,
        unit=cost.unit or SITE,
        max_rows_per_unit=guarantee.max_rows_per_unit if isinstance(guarantee, RecordDp) else None,
        adjacency=guarantee.adjacency,
        epsilon=epsilon(events, delta=cost.delta, accountant=accountant),
        epsilon_limit=guarantee.epsilon,
        delta=guarantee.delta,
        accountant=accountant,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
        charged_by=cost.charged_by,
        noise=_noise(guarantee, cost),
    )


def _noise(guarantee: RecordDp | ClientDp, cost: RoundCost) -> Noise:
    plan = cost.plan
    return Noise(
        mechanism=guarantee.mechanism,
        added_to=plan.stage,
        clip=_clip(guarantee),
        noise_multiplier=cost.multiplier,
        noise_stddev=plan.noise_stddev,
        sampling_rate=plan.sampling_rate,
        steps_per_round=plan.steps,
    )


def _clip(guarantee: RecordDp | ClientDp) -> Clip:
    if isinstance(guarantee, ClientDp):
        return Clip(kind="fixed", norm=guarantee.clip_norm)
    bound, adaptive = guarantee.clip_norm, guarantee.adaptive_clip
    if isinstance(bound, GroupBounds):
        return Clip(
            kind="groups", norm=guarantee.sensitivity, adapter=bound.adapter, head=bound.head
        )
    if isinstance(adaptive, AdaptiveClip):
        return Clip(
            kind="adaptive",
            norm=bound,
            quantile=adaptive.quantile,
            count_stddev=adaptive.count_stddev,
        )
    return Clip(kind="fixed", norm=bound)
