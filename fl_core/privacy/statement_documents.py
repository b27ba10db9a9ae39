"""The privacy statement of a released version, as a document.

Its fields are a closed list: what a version says of its privacy is read by people and programs
long after the run. Every spent epsilon in it is what a site signed and what follows from the
events that the site signed with it.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from fl_core.artifacts.documents import Document
from fl_core.campaign.guarantees import Level
from fl_core.campaign.specs import Count, Name, Sha256
from fl_core.updates.records import Accountant, Charge, EventRecord, Terms

Guarantee = Literal["record_dp", "client_dp", "record_dp and client_dp", "none"]


class Clip(Document):
    """The L2 bound of one unit's contribution.

    Attributes:
        kind: ``fixed``; ``groups``, one bound for the LoRA pairs and one for the head; or
            ``adaptive``, which follows the gradients at a charged price.
        norm: The bound; with groups the root of the sum of squares, with adaptive at the start.
        adapter: Bound of the LoRA pairs; groups only.
        head: Bound of the head; groups only.
        quantile: Share of units that is to stay unclipped; adaptive only.
        count_stddev: Noise on the count of unclipped units, paid by the same event; adaptive only.
    """

    kind: Literal["fixed", "groups", "adaptive"]
    norm: float
    adapter: float | None = None
    head: float | None = None
    quantile: float | None = None
    count_stddev: float | None = None


class Noise(Document):
    """How a promise is kept: public numbers of the campaign.

    Attributes:
        mechanism: Part of the registry.
        added_to: ``gradient`` sums of every step or a whole ``update``, at the site; or the
            ``release``, at the coordinator.
        clip: Bound of one unit's contribution.
        noise_multiplier: Noise stddev / clip norm, as it is charged.
        noise_stddev: Of the noise that is added, in units of the sum it is added to.
        sampling_rate: Chance of a unit to take part in a step; 1 without sampling.
        steps_per_round: Noised steps of one round.
    """

    mechanism: str
    added_to: Literal["gradient", "update", "release"]
    clip: Clip
    noise_multiplier: float
    noise_stddev: float
    sampling_rate: float
    steps_per_round: Count


class Promise(Document):
    """One of the campaign's promises, and what it came to at this version.

    Attributes:
        level: ``record``: one unit of one site's rows. ``client``: one site's whole data.
        unit: ``row``, the column that names a person, or ``site``.
        max_rows_per_unit: Rows of one unit that may take part; None for whole sites.
        adjacency: Neighbouring relation.
        epsilon: Of this campaign alone, for a unit that was there in every round so far.
        epsilon_limit: What the campaign promises to stay under in all its rounds.
        delta: Of the campaign.
        accountant: Which accountant gave ``epsilon``.
        epsilon_pld: By PLD.
        epsilon_rdp: By RDP at its best order; None is infinite.
        charged_by: ``site``, or the ``coordinator`` on the federation's ledger.
        noise: How it is kept.
    """

    level: Level
    unit: str
    max_rows_per_unit: int | None = None
    adjacency: str
    epsilon: float
    epsilon_limit: float
    delta: float
    accountant: Accountant
    epsilon_pld: float | None = None
    epsilon_rdp: float | None = None
    charged_by: Literal["site", "coordinator"]
    noise: Noise


class Spent(Document):
    """One budget as its owner signed it, over all campaigns.

    Attributes:
        unit: What the ledger counts.
        epsilon: Spent; at ``delta``.
        epsilon_limit: The owner's limit.
        delta: The owner's delta.
        accountant: Which accountant decided.
        why: Why it may decide.
        epsilon_pld: The same events by PLD; None is infinite, or events of too many kinds.
        epsilon_rdp: The same events by RDP at its best order; None is infinite.
        rounds_left: Rounds of this campaign that the limit still allows.
        events: All that was charged, equal steps added up.
        terms: Under which it was decided.
        ledger_seq: Last ledger entry that is covered.
        ledger_head_sha256: Its hash.
    """

    unit: str
    epsilon: float
    epsilon_limit: float
    delta: float
    accountant: Accountant
    why: str
    epsilon_pld: float | None = None
    epsilon_rdp: float | None = None
    rounds_left: int
    events: tuple[EventRecord, ...]
    terms: Terms
    ledger_seq: Count
    ledger_head_sha256: Sha256


class SiteSpend(Document):
    """One site's own statement.

    Attributes:
        site: Who stated it.
        round: Round that the statement was written for; the last one that the site took part in.
        dataset: Opaque id of its data.
        record: Budget of one unit of its rows.
        client: Budget of its whole data; None where the site keeps none.
        charge: What it charged for this version's round; None if it took no part.
        client_charge: The same on the ledger of its whole data.
    """

    site: Name
    round: Count
    dataset: Name
    record: Spent
    client: Spent | None = None
    charge: Charge | None = None
    client_charge: Charge | None = None


class NotBelieved(Document):
    """A site whose statement does not follow from its own events."""

    site: Name
    complaint: str


class Leaving(Document):
    """One kind of thing that leaves a site, and how it depends on rows."""

    what: str
    protection: str


class Claim(Document):
    """What holds against one adversary, for one of the promises."""

    against: str
    level: Level | Literal["none"]
    holds: str


class RawUpdates(Document):
    """Who could read un-noised updates under central ClientDp, and how long.

    Attributes:
        readers: Who.
        opened: When the round began, so that the first of them could come.
        deleted: When the round was closed; they are deleted before that is written.
    """

    readers: str
    opened: AwareDatetime
    deleted: AwareDatetime


class AuditFinding(Document):
    """What an audit of the campaign came to; the whole report lies in the store.

    Attributes:
        number: Of the report.
        rows: What it ran on; never a site's rows.
        verdict: ``refuted``, ``not refuted``, or ``cannot refute``.
        lower_bound: Lower bound on epsilon.
        ceiling: The most that it could have shown.
        claimed_epsilon: Upper bound that it is held against.
        confidence: Of the lower bound.
        membership_auc: Of membership inference on the final adapter; 0.5 tells nothing.
        failed_checks: White-box checks that failed.
        label: Why the run is no audit of the product; None if it is one.
    """

    number: Count
    rows: str
    verdict: str
    lower_bound: float
    ceiling: float
    claimed_epsilon: float
    confidence: float
    membership_auc: float | None = None
    failed_checks: tuple[str, ...] = ()
    label: str | None = None


class PrivacyStatement(Document):
    """What is promised about one released version.

    Attributes:
        campaign: Id of the campaign.
        campaign_digest: Its digest.
        round: Round that released the version; it builds on all rounds before it.
        adapter_sha256: Content hash of the version's adapter; None before it is released.
        contributors: Sites whose updates are in this version's round.
        guarantee: What is promised.
        reason: Why there is no guarantee; empty otherwise.
        record: The promise to one unit of a site's rows.
        client: The promise to one site as a whole.
        sites: Spend by site over all its campaigns, as the sites signed it.
        not_stated: Sites of the campaign without a statement up to this round.
        not_believed: Sites whose statement does not follow from its own events.
        worst_site: Site with the largest record-level epsilon.
        worst_epsilon: That epsilon; None if none is stated.
        worst_client_epsilon: Largest whole-site epsilon that is stated, by a site or the
            federation; None if none is.
        federation: The federation's ledger under central ClientDp, as far as this round.
        raw_updates: Who could read un-noised updates; central ClientDp only.
        upload_after_s: Seconds from the plan to all uploads; None: sites upload when ready.
        holdout: Name of the public rows that the version is evaluated on.
        holdout_sha256: Their hash.
        audits: Audits of the campaign that were there when the statement was made.
        leaves_site: Everything that leaves a site.
        outside_claim: What the numbers do not cover.
        claims: What holds against whom.
    """

    campaign: Name
    campaign_digest: Sha256
    round: Count
    adapter_sha256: Sha256 | None = None
    contributors: tuple[Name, ...] = ()
    guarantee: Guarantee
    reason: str = ""
    record: Promise | None = None
    client: Promise | None = None
    sites: tuple[SiteSpend, ...] = ()
    not_stated: tuple[Name, ...] = ()
    not_believed: tuple[NotBelieved, ...] = ()
    worst_site: Name | None = None
    worst_epsilon: float | None = None
    worst_client_epsilon: float | None = None
    federation: Spent | None = None
    raw_updates: RawUpdates | None = None
    upload_after_s: float | None = None
    holdout: str
    holdout_sha256: Sha256
    audits: tuple[AuditFinding, ...] = ()
    leaves_site: Annotated[tuple[Leaving, ...], Field(min_length=1)]
    outside_claim: Annotated[tuple[str, ...], Field(min_length=1)]
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]
