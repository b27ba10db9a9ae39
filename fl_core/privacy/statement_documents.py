"""The privacy statement of a released version, as a document.

Its fields are a closed list: what a version says of its privacy is read by people and programs
long after the run. Every spent epsilon in it is what a site signed, never worked out here.
"""

from typing import Literal

from pydantic import Field

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Count, Name, Sha256


class SiteSpend(Document):
    """One site's own statement, over all campaigns on its dataset.

    Attributes:
        site: Who stated it.
        epsilon: Spent; at ``delta``.
        epsilon_limit: The site's limit.
        delta: The site's delta.
        accountant: Which accountant decided at the site.
        rounds_left: Rounds of this campaign that the site's policy still allows.
        ledger_seq: Last ledger entry that the statement covers.
        ledger_head_sha256: Its hash.
    """

    site: Name
    epsilon: float
    epsilon_limit: float
    delta: float
    accountant: Literal["pld", "rdp", "gdp"]
    rounds_left: int
    ledger_seq: Count
    ledger_head_sha256: Sha256


class Noise(Document):
    """How the guarantee is kept: the public numbers of every noised step."""

    mechanism: str
    clip_norm: float
    noise_multiplier: float
    noise_stddev: float
    sampling_rate: float
    steps_per_round: Count


class Leaving(Document):
    """One kind of thing that leaves a site, and how it depends on rows."""

    what: str
    protection: str


class Claim(Document):
    """What holds against one adversary."""

    against: str
    holds: str


class PrivacyStatement(Document):
    """What is promised about one released version.

    Attributes:
        campaign: Id of the campaign.
        campaign_digest: Its digest.
        round: Round that released the version; it builds on all rounds before it.
        guarantee: ``record_dp``, or ``none``.
        reason: Why there is no guarantee; empty otherwise.
        unit: What is protected: one row of one site; None without guarantee.
        adjacency: Neighbouring relation; None without guarantee.
        epsilon: Of this campaign alone, for a row of a site that took part in every round so far.
        delta: Of the campaign.
        accountant: Which accountant gave ``epsilon``.
        noise: How it is kept; None without guarantee.
        sites: Spend by site over all its campaigns, as the sites signed it.
        not_stated: Sites of the campaign without a statement for this round.
        worst_epsilon: Largest of the sites' spends; None if none is stated.
        leaves_site: Everything that leaves a site.
        outside_claim: What the numbers do not cover.
        claims: What holds against whom.
    """

    campaign: Name
    campaign_digest: Sha256
    round: Count
    guarantee: Literal["record_dp", "none"]
    reason: str = ""
    unit: str | None = None
    adjacency: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    accountant: Literal["pld", "gdp"] | None = None
    noise: Noise | None = None
    sites: tuple[SiteSpend, ...] = ()
    not_stated: tuple[Name, ...] = ()
    worst_epsilon: float | None = None
    leaves_site: tuple[Leaving, ...] = Field(min_length=1)
    outside_claim: tuple[str, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = Field(min_length=1)
