"""A campaign becomes its parts, each built and checked against the others.

This is the only place that knows all registries. Whatever cannot keep its promise together is
refused here, before any site is asked.
"""

import math
from dataclasses import dataclass

from fl_core.adapters.peft_layout import tensor_shapes
from fl_core.aggregation.aggregator import AGGREGATORS, Aggregator
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.roster import Roster
from fl_core.codecs.codec import CODECS, Codec
from fl_core.cohorts.selection import SELECTIONS, Selection
from fl_core.errors import IncompatibleParts
from fl_core.privacy.forecast import require_campaign_budget
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting


@dataclass(frozen=True, slots=True)
class Assembly:
    """A frozen campaign with its parts.

    Attributes:
        campaign: The locked campaign.
        digest: Its digest.
        aggregator: How updates are combined.
        codec: How updates are encoded.
        selection: Who is asked.
        noise: Noise and event of one round for a unit of a site's rows; None without RecordDp.
        client_noise: The same for a site's whole data; None without ClientDp.
    """

    campaign: Campaign
    digest: str
    aggregator: Aggregator
    codec: Codec
    selection: Selection
    noise: NoisePlan | None
    client_noise: NoisePlan | None

    def shapes(self, round_number: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a round's updates by name."""
        campaign = self.campaign
        return tensor_shapes(campaign.adapter, campaign.task, round_number=round_number)


def assemble(campaign: Campaign) -> Assembly:
    """Build every part of a locked campaign and check that they fit.

    Raises:
        CampaignError: The campaign is not locked.
        UnknownComponent: A part that no registry holds.
        IncompatibleParts: Parts that cannot keep the campaign's promise together.
    """
    digest = campaign.digest
    parts = build_parts(campaign)
    return Assembly(
        campaign=campaign,
        digest=digest,
        aggregator=parts.aggregator,
        codec=parts.codec,
        selection=parts.selection,
        noise=noise_plan(campaign),
        client_noise=client_noise_plan(campaign),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that need no content of a site or a model."""

    aggregator: Aggregator
    codec: Codec
    selection: Selection


def build_parts(campaign: Campaign) -> Parts:
    """Build the parts that an unlocked campaign names already, and check what it states.

    Raises:
        UnknownComponent: A part that no registry holds.
        IncompatibleParts: Statements that contradict each other.
    """
    _require_sites_fit(campaign)
    _require_kept_promise(campaign)
    parts = Parts(
        aggregator=AGGREGATORS.build(campaign.aggregation),
        codec=CODECS.build(campaign.codec),
        selection=SELECTIONS.build(campaign.cohort.selection),
    )
    _require_reachable_quorum(campaign, parts.selection)
    return parts


def noise_plan(campaign: Campaign) -> NoisePlan | None:
    """Build the noise of one round from the campaign's own numbers; None under NoPrivacy.

    Every side calls this; nobody takes the noise from a plan or a message (SOUNDNESS, rule 9).
    """
    record = campaign.privacy.record
    if record is None:
        return None
    mechanism = MECHANISMS.build(ComponentSpec(kind=record.mechanism))
    plan = mechanism.plan(record, noise_setting(campaign))
    require_campaign_budget(campaign)
    return plan


def client_noise_plan(campaign: Campaign) -> NoisePlan | None:
    """Build the noise of one round for whole sites; None without ClientDp."""
    client = campaign.privacy.client
    if client is None:
        return None
    mechanism = MECHANISMS.build(ComponentSpec(kind=client.mechanism))
    return mechanism.plan(client, noise_setting(campaign))


def noise_setting(campaign: Campaign) -> NoiseSetting:
    """Return what mechanisms must know of a locked campaign."""
    # RoLoRA's rounds differ in size: the larger one counts.
    sizes = [
        sum(math.prod(shape) for shape in shapes.values())
        for shapes in (
            tensor_shapes(campaign.adapter, campaign.task, round_number=number) for number in (1, 2)
        )
    ]
    return NoiseSetting(
        steps=campaign.training.local_steps, sites=len(campaign.sites), dimension=max(sizes)
    )


def site_weights(campaign: Campaign, roster: Roster) -> dict[str, float]:
    """Return the public weight of every enrolled site of the campaign.

    Raises:
        IncompatibleParts: Weights follow declared sizes and a site declared none.
    """
    weights: dict[str, float] = {}
    for site in campaign.sites:
        entry = roster.entry(site)
        if entry is None:
            continue
        if campaign.weights != "uniform" and entry.declared_examples is None:
            raise IncompatibleParts(
                f"weights are {campaign.weights!r} and site {site!r} declared no size; "
                'enrol it with declared_examples, or use weights = "uniform"'
            )
        weights[site] = _weight(campaign, site, entry.declared_examples or 1)
    return weights


def _weight(campaign: Campaign, site: str, declared: int) -> float:
    # The sum of a site's gradients grows with its size n, and is divided by its public divisor B:
    # signal ~ n / B, noise ~ 1 / B. The best linear combination weighs signal over variance, n B.
    match campaign.weights:
        case "uniform":
            return 1.0
        case "declared":
            return float(declared)
        case "noise_aware":
            return declared * campaign.training.divisor(site)


def _require_sites_fit(campaign: Campaign) -> None:
    sizes = campaign.training.batch_size
    if isinstance(sizes, dict) and set(sizes) != set(campaign.sites):
        odd = ", ".join(sorted(set(sizes) ^ set(campaign.sites)))
        raise IncompatibleParts(
            f"training.batch_size names other sites than the campaign ({odd}); name every site once"
        )


def _require_reachable_quorum(campaign: Campaign, selection: Selection) -> None:
    quorum = campaign.cohort.quorum
    asked = len(selection.select(campaign.sites, coins=campaign.id))
    if quorum is not None and quorum > asked:
        raise IncompatibleParts(
            f"cohort.quorum is {quorum} and at most {asked} sites are asked in a round; "
            "ask more sites, or lower the quorum"
        )


def _require_kept_promise(campaign: Campaign) -> None:
    if campaign.privacy.client is not None:
        raise IncompatibleParts(
            "privacy.client is not available in this version; state privacy.record, "
            "which protects every record against the coordinator too"
        )
    record = campaign.privacy.record
    if record is not None and (record.unit != "row" or record.max_rows_per_unit != 1):
        raise IncompatibleParts(
            f"privacy.record.unit {record.unit!r} with max_rows_per_unit "
            f'{record.max_rows_per_unit} is not available in this version; use unit = "row"'
        )
