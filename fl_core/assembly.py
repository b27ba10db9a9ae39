"""A campaign becomes its parts, each built and checked against the others.

This is the only place that knows all registries. Whatever cannot keep its promise together is
refused here, before any site is asked.
"""

from collections.abc import Mapping
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
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan


@dataclass(frozen=True, slots=True)
class Assembly:
    """A frozen campaign with its parts.

    Attributes:
        campaign: The locked campaign.
        digest: Its digest.
        aggregator: How updates are combined.
        codec: How updates are encoded.
        selection: Who is asked.
        noise: Noise and event of one round; None under NoPrivacy.
        shapes: Shape of every tensor of an update by name.
    """

    campaign: Campaign
    digest: str
    aggregator: Aggregator
    codec: Codec
    selection: Selection
    noise: NoisePlan | None
    shapes: Mapping[str, tuple[int, ...]]


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
        shapes=tensor_shapes(campaign.adapter, campaign.task, trainable_only=True),
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
    plan = mechanism.plan(record, steps=campaign.training.local_steps)
    require_campaign_budget(campaign)
    return plan


def site_weights(campaign: Campaign, roster: Roster) -> dict[str, float]:
    """Return the public weight of every enrolled site of the campaign.

    Raises:
        IncompatibleParts: Weights are ``declared`` and a site declared no size.
    """
    weights: dict[str, float] = {}
    for site in campaign.sites:
        entry = roster.entry(site)
        if entry is None:
            continue
        if campaign.weights == "declared" and entry.declared_examples is None:
            raise IncompatibleParts(
                f"weights are 'declared' and site {site!r} declared no size; "
                'enrol it with declared_examples, or use weights = "uniform"'
            )
        declared = campaign.weights == "declared"
        weights[site] = float(entry.declared_examples or 1) if declared else 1.0
    return weights


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
