"""What is promised and spent, to whom: a site's signed budget, and the statement of a version.

The statement is generated from the frozen campaign and the sites' signed budgets, never written by
hand, and is made for a data-protection officer: what is protected, by how much, against whom, all
that leaves a site (a closed list: SOUNDNESS, rule 17), and as plainly what is not covered.
"""

from collections.abc import Mapping

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import RecordDp
from fl_core.privacy.forecast import epsilon_after
from fl_core.privacy.stated_budget import Budget, budget_statement
from fl_core.privacy.statement_documents import Claim, Leaving, Noise, PrivacyStatement, SiteSpend
from fl_core.privacy.statement_text import to_markdown
from fl_core.updates.records import BudgetStatement

__all__ = ["Budget", "PrivacyStatement", "budget_statement", "privacy_statement", "to_markdown"]


def privacy_statement(
    campaign: Campaign, *, budgets: Mapping[str, BudgetStatement], round_number: int
) -> PrivacyStatement:
    """Return the statement of the version that ``round_number`` released.

    Args:
        campaign: The locked campaign.
        budgets: Verified statements by site; sites that stated nothing are named as such.
        round_number: From 1.

    Raises:
        CampaignError: The campaign is not locked.
    """
    record = campaign.privacy.record
    if record is None:
        return PrivacyStatement(
            campaign=campaign.id,
            campaign_digest=campaign.digest,
            round=round_number,
            guarantee="none",
            reason="" if campaign.privacy.none is None else campaign.privacy.none.reason,
            leaves_site=(_UPDATE_PLAIN, *_LEAVES_ALWAYS),
            outside_claim=("everything: no guarantee is made for any row",),
            claims=(Claim(against="anybody", holds="nothing is claimed"),),
        )
    sites = tuple(_site_spend(budgets[site]) for site in sorted(budgets))
    return PrivacyStatement(
        campaign=campaign.id,
        campaign_digest=campaign.digest,
        round=round_number,
        guarantee="record_dp",
        unit=record.unit,
        adjacency=record.adjacency,
        epsilon=epsilon_after(campaign, round_number),
        delta=record.delta,
        accountant="pld",
        noise=_noise(campaign, record),
        sites=sites,
        not_stated=tuple(sorted(set(campaign.sites) - set(budgets))),
        worst_epsilon=max((site.epsilon for site in sites), default=None),
        leaves_site=(_UPDATE_NOISED, *_LEAVES_ALWAYS, _CHARGE, _BUDGET),
        outside_claim=(*_OUTSIDE, _holdout(campaign)),
        claims=_CLAIMS,
    )


def _site_spend(budget: BudgetStatement) -> SiteSpend:
    shared = set(SiteSpend.model_fields) & set(BudgetStatement.model_fields)
    return SiteSpend.model_validate(budget.model_dump(include=shared))


def _noise(campaign: Campaign, record: RecordDp) -> Noise:
    multiplier = record.noise_multiplier or 0.0
    return Noise(
        mechanism=record.mechanism,
        clip_norm=record.sensitivity,
        noise_multiplier=multiplier,
        noise_stddev=multiplier * record.sensitivity,
        sampling_rate=record.sampling_rate,
        steps_per_round=campaign.training.local_steps,
    )


def _holdout(campaign: Campaign) -> str:
    holdout = campaign.evaluation.holdout
    return (
        f"the holdout {holdout.name!r} (SHA-256 {holdout.sha256}): declared public rows of the "
        "coordinator; a person in it is not protected there"
    )


_UPDATE_NOISED = Leaving(
    what="the update: change of the adapter's tensors",
    protection="every step clipped per row, noised and charged before it left",
)
_UPDATE_PLAIN = Leaving(
    what="the update: change of the adapter's tensors", protection="none: trained on rows as is"
)
_LEAVES_ALWAYS = (
    Leaving(
        what="its signed manifest: names, shapes, length and hashes, number of steps, version",
        protection="public numbers, and a hash of the update",
    ),
    Leaving(
        what="the gate's bit and the names of broken rules",
        protection="depends on the rows; judged once per dataset version; outside the claim",
    ),
    Leaving(
        what="a refusal: one of gate, budget, policy, no_update",
        protection="gate and no_update are outside the claim; the others do not depend on rows",
    ),
    Leaving(
        what="when things happen: start, upload, states of the site's tasks",
        protection="depends on rows drawn and read; outside the claim",
    ),
)
_CHARGE = Leaving(
    what="the charge: the round's event and its number in the ledger",
    protection="public numbers; the number shows how often this dataset was used",
)
_BUDGET = Leaving(
    what="the budget statement: epsilon, limit, delta, rounds left, ledger head",
    protection="follows from public events of all campaigns, not from rows",
)
_OUTSIDE = (
    "timing: durations may reveal how many rows were drawn or read",
    "the gate's bit and names of broken rules, which depend on the rows",
    (
        "choices made by looking at results: learning rate, clip and rounds tuned on private data "
        "would have to be charged, and are not"
    ),
    "a person with several rows, or at several sites: what each of them costs adds up",
    "side channels of the site's machine, and rounding of floating-point noise",
    (
        "a ledger that is set back to an older copy: no witness outside the site would notice, and "
        "rounds after the copy could be trained again on one charge"
    ),
    "updates that are missing for causes like disk or network (no_update), which are charged",
)
_CLAIMS = (
    Claim(
        against="a reader of the models, MLflow or the store",
        holds="epsilon and delta as stated, for every row of every site",
    ),
    Claim(
        against="another site",
        holds="epsilon and delta as stated: noise is added at the site, no other site knows it",
    ),
    Claim(
        against="the coordinator",
        holds="epsilon and delta as stated: a site takes noise from the campaign it approved and "
        "charges its own ledger, whatever the coordinator plans",
    ),
    Claim(
        against="a site that cheats",
        holds="rows of other sites stay protected as stated; its own rows and the model's quality "
        "are in its hands",
    ),
)
