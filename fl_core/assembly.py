"""A campaign becomes its parts, each built and checked against the others.

This is the only place that knows all registries. Whatever cannot keep its promise together is
refused here, before any site is asked.
"""

import math
from dataclasses import dataclass

import numpy as np

from fl_core.adapters.peft_layout import tensor_shapes
from fl_core.adapters.rules import require_bounds_fit, require_rule_fits
from fl_core.aggregation.aggregator import AGGREGATORS, Aggregator, Cohort, Member
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import ClientDp
from fl_core.campaign.roster import Roster
from fl_core.codecs.codec import CODECS, Codec
from fl_core.cohorts.rules import require_rule_fits as require_closing_fits
from fl_core.cohorts.selection import SELECTIONS, Selection
from fl_core.errors import IncompatibleParts
from fl_core.privacy.forecast import require_campaign_budget
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting
from fl_core.privacy.round_events import row_event_of_local
from fl_core.updates.records import EventRecord


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

    @property
    def central_noise(self) -> NoisePlan | None:
        """Noise of one release, which the coordinator adds and charges; None without it."""
        noise = self.client_noise
        return noise if noise is not None and noise.stage == "release" else None

    @property
    def local_noise(self) -> NoisePlan | None:
        """Noise of one update, which the site adds and charges; None without it."""
        noise = self.client_noise
        return noise if noise is not None and noise.stage == "update" else None

    @property
    def row_event(self) -> EventRecord | None:
        """What one round costs one unit of a site's rows; None where nothing is promised to it.

        Noise on the whole update protects a unit too, at half the multiplier. Noise that the
        coordinator adds protects nothing against the coordinator.
        """
        if self.noise is not None:
            return self.noise.event
        if self.local_noise is not None:
            return row_event_of_local(self.local_noise)
        return None

    @property
    def site_event(self) -> EventRecord | None:
        """What one round costs a site's whole data, on the site's own ledger; None: nothing."""
        return None if self.local_noise is None else self.local_noise.event


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
    require_rule_fits(campaign.adapter, campaign.task)
    require_bounds_fit(campaign.adapter, campaign.task, campaign.privacy.record)
    _require_kept_promise(campaign)
    parts = Parts(
        aggregator=AGGREGATORS.build(campaign.aggregation),
        codec=CODECS.build(campaign.codec),
        selection=SELECTIONS.build(campaign.cohort.selection),
    )
    require_closing_fits(campaign, parts.selection)
    if campaign.privacy.client is not None:
        _require_client_promise(campaign, campaign.privacy.client, parts.aggregator)
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
    plan = mechanism.plan(client, noise_setting(campaign))
    require_campaign_budget(campaign)
    return plan


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


def _require_kept_promise(campaign: Campaign) -> None:
    record = campaign.privacy.record
    if record is not None:
        _require_level(record.mechanism, protects="record")
    if campaign.weights == "noise_aware" and campaign.privacy.none is not None:
        raise IncompatibleParts(
            'weights "noise_aware" weigh signal against noise and [privacy.none] adds no noise; '
            'use weights = "declared"'
        )


def _require_level(kind: str, *, protects: str) -> None:
    own = MECHANISMS.build(ComponentSpec(kind=kind)).protects
    if own != protects:
        raise IncompatibleParts(
            f"mechanism {kind!r} protects {own}s and is named under privacy.{protects}; "
            f"name it under privacy.{own}"
        )


def _require_client_promise(campaign: Campaign, client: ClientDp, aggregator: Aggregator) -> None:
    _require_level(client.mechanism, protects="client")
    n = len(campaign.sites)
    if n < 2:  # noqa: PLR2004  the aggregate of one site is that site
        raise IncompatibleParts(
            "privacy.client hides one site among others and the campaign has one site; "
            "name two or more sites, or state privacy.record"
        )
    if client.delta >= 1 / n:
        raise IncompatibleParts(
            f"privacy.client.delta {client.delta:g} is not below 1 / {n} sites; publishing one "
            "site's whole update by chance would keep such a promise, so state a smaller delta"
        )
    if campaign.weights != "uniform":
        raise IncompatibleParts(
            f"weights {campaign.weights!r} with privacy.client let one site count for more than "
            'the noise covers; use weights = "uniform"'
        )
    _require_bounded(campaign.aggregation.kind, aggregator, client, n)


def _require_bounded(kind: str, aggregator: Aggregator, client: ClientDp, n: int) -> None:
    """Try the rule on made-up updates of full norm: it must state how far one can move it."""
    whole = np.full(1, client.clip_norm, dtype=np.float32)
    members = tuple(
        Member(site=f"probe-{i}", tensors={"probe": whole}, norm_bound=client.clip_norm)
        for i in range(n)
    )
    stated = aggregator.aggregate(
        Cohort(members=members), {member.site: 1.0 for member in members}, float(n)
    ).l2_sensitivity
    if stated is None or not stated <= sensitivity_limit(client.clip_norm, n):
        found = "no finite l2_sensitivity" if stated is None else f"l2_sensitivity {stated:g}"
        raise IncompatibleParts(
            f"aggregation {kind!r} has {found} where the noise of privacy.client covers "
            f"{client.clip_norm / n:g}; use 'mean' with privacy.client, or {kind!r} with "
            "privacy.record"
        )


def sensitivity_limit(clip_norm: float, divisor: float) -> float:
    """Return how far one site may move the mean of clipped updates, up to the last bits."""
    return clip_norm / divisor * (1 + 1e-9)
