"""What one round of a campaign costs, and on whose ledger: known before anybody is asked.

One campaign may draw on several budgets: one unit of a site's rows, a site's whole data, and the
federation's clients. Each is charged its own event, made by the mechanism from the campaign's
numbers, the same that the site builds for itself.
"""

from dataclasses import dataclass
from typing import Literal

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import SITE, ClientDp, Level, RecordDp
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting
from fl_core.updates.records import EventRecord, GaussianEvent


@dataclass(frozen=True, slots=True)
class RoundCost:
    """What a round charges on one kind of budget.

    Attributes:
        level: ``record``, or ``client`` for whole sites.
        charged_by: ``site``, or ``coordinator`` on the federation's ledger.
        unit: Unit of the ledger; None where the campaign protects rows without naming their unit.
        event: The round's event.
        plan: Noise that pays for it.
        multiplier: Noise multiplier of the guarantee that pays.
        epsilon_limit: The guarantee's own limit, for this campaign alone; None where the campaign
            promises nothing at this level, though its rounds are charged there.
        delta: The guarantee's delta.
    """

    level: Level
    charged_by: Literal["site", "coordinator"]
    unit: str | None
    event: EventRecord
    plan: NoisePlan
    multiplier: float
    epsilon_limit: float | None
    delta: float


def round_costs(campaign: Campaign) -> list[RoundCost]:
    """Return every budget that one round draws on; empty under NoPrivacy.

    Central ClientDp alone leaves sites' rows without protection against the coordinator, which is
    charged as a release without guarantee and is no budget to plan.

    Raises:
        IncompatibleParts: The noise is still open.
    """
    record, client = campaign.privacy.record, campaign.privacy.client
    costs = []
    if record is not None:
        plan = _noise(campaign, record)
        costs.append(_record_cost(record, plan))
    if client is not None:
        plan = _noise(campaign, client)
        is_local = plan.stage == "update"
        if is_local and record is None:
            costs.append(_row_cost_of_local(client, plan))
        costs.append(_client_cost(client, plan, charged_by="site" if is_local else "coordinator"))
    return costs


def with_multiplier(campaign: Campaign, cost: RoundCost, multiplier: float) -> RoundCost:
    """Return the same cost if the guarantee that pays had another noise multiplier."""
    privacy = campaign.privacy
    guarantee = privacy.record if cost.level == "record" and privacy.record else privacy.client
    if guarantee is None:
        return cost
    noised = guarantee.model_copy(update={"noise_multiplier": multiplier})
    name = "record" if isinstance(guarantee, RecordDp) else "client"
    other = campaign.model_copy(update={"privacy": privacy.model_copy(update={name: noised})})
    own = (cost.level, cost.charged_by)
    return next(c for c in round_costs(other) if (c.level, c.charged_by) == own)


def _noise(campaign: Campaign, guarantee: RecordDp | ClientDp) -> NoisePlan:
    setting = NoiseSetting(
        steps=campaign.training.local_steps, sites=len(campaign.sites), dimension=1
    )
    mechanism = MECHANISMS.build(ComponentSpec(kind=guarantee.mechanism))
    return mechanism.plan(guarantee, setting)


def _record_cost(record: RecordDp, plan: NoisePlan) -> RoundCost:
    return RoundCost(
        level="record",
        charged_by="site",
        unit=record.unit,
        event=plan.event,
        plan=plan,
        multiplier=record.noise_multiplier or 0.0,
        epsilon_limit=record.epsilon,
        delta=record.delta,
    )


def _client_cost(
    client: ClientDp, plan: NoisePlan, *, charged_by: Literal["site", "coordinator"]
) -> RoundCost:
    return RoundCost(
        level="client",
        charged_by=charged_by,
        unit=SITE,
        event=plan.event,
        plan=plan,
        multiplier=client.noise_multiplier or 0.0,
        epsilon_limit=client.epsilon,
        delta=client.delta,
    )


def row_event_of_local(plan: NoisePlan) -> GaussianEvent:
    """Return what noise on a site's whole update costs one unit of its rows.

    One unit can turn a clipped update into any other, which are two clip norms apart, not one.
    Ledger and plan take it from here, so that they agree to the last bit.
    """
    return GaussianEvent(noise_multiplier=plan.noise_stddev / plan.clip_norm / 2)


def _row_cost_of_local(client: ClientDp, plan: NoisePlan) -> RoundCost:
    return RoundCost(
        level="record",
        charged_by="site",
        unit=None,
        event=row_event_of_local(plan),
        plan=plan,
        multiplier=client.noise_multiplier or 0.0,
        epsilon_limit=None,
        delta=client.delta,
    )
