"""What a site allows, as documents: the policy, its series, its terms, witnesses, approvals.

Whoever chooses delta or the unit passes any cap on epsilon, so the site states all of them itself
and evaluates its whole ledger at its own numbers (SOUNDNESS, rule 10). A snapshot rolls ledger and
outbox back together and nothing inside the site shows it, so the policy also names who keeps
copies of the ledger's entries: its witnesses (rule 14).
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, StringConstraints, model_validator

from fl_core.artifacts.documents import Document
from fl_core.campaign.guarantees import ROW, SITE, Delta, Unit
from fl_core.campaign.specs import Count, Name, Sha256
from fl_core.updates.records import LARGEST_EPSILON, Series, Terms

ANY = "*"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Allowed = Annotated[tuple[Sha256 | Literal["*"], ...], BeforeValidator(_listed)]

# Of a ledger whose unit is a whole site: GDP decides there.
UNUSED_RDP_ORDER = 2.0


class CoordinatorWitness(Document):
    """The campaign's store, which the coordinator runs."""

    kind: Literal["coordinator"] = "coordinator"

    @property
    def is_own(self) -> bool:
        """False: the adversary of the claim runs it."""
        return False

    @property
    def text(self) -> str:
        """What people call it."""
        return "coordinator"


class FolderWitness(Document):
    """A folder on another disk than the ledger's, or of another machine.

    Attributes:
        path: The folder; relative to the site's folder.
    """

    kind: Literal["folder"] = "folder"
    path: Path

    @property
    def is_own(self) -> bool:
        """True: the coordinator does not run it."""
        return True

    @property
    def text(self) -> str:
        """What people call it."""
        return f"folder {self.path}"


class S3Witness(Document):
    """A bucket that the site itself or a peer runs, never the coordinator.

    Attributes:
        bucket: Its name.
        prefix: Where in it, without slashes at the ends.
        endpoint: Base URL of an S3-compatible server; None for AWS.
        credentials_file: Access key and secret key, a line each; relative to the site's folder.
    """

    kind: Literal["s3"] = "s3"
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,62}$")]
    prefix: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)?$")] = ""
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^/]")] | None = None
    credentials_file: Path | None = None

    @property
    def is_own(self) -> bool:
        """True: the coordinator does not run it."""
        return True

    @property
    def text(self) -> str:
        """What people call it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


Witness = Annotated[
    CoordinatorWitness | FolderWitness | S3Witness,
    Field(discriminator="kind"),
]


class ClientLimit(Document):
    """The limit for a site's whole data as one unit, over all campaigns, ever.

    Attributes:
        epsilon: Limit over all campaigns.
        delta: At which epsilon is evaluated; a campaign with a larger one is refused.
    """

    epsilon: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)]
    delta: Delta


class SitePolicy(Document):
    """What a site allows on one dataset; written by the site only.

    Attributes:
        dataset: Opaque id of the protected data; all campaigns on it share one ledger.
        unit: Unit of protection: ``row``, or a column that names a person.
        max_rows_per_unit: Rows of one unit that may take part.
        adjacency: Neighbouring relation; add or remove one unit.
        epsilon: Limit over all campaigns.
        delta: At which epsilon is evaluated; a campaign with a larger one is refused.
        series: Steps decided by PLD, or None: RDP decides everything.
        rdp_order: Order at which RDP decides; None takes ``default_rdp_order``.
        base_models: Content hashes of base models that may be trained, or ``*``.
        suites: Content hashes of suites that may judge the rows, or ``*``.
        campaigns: Digests of approved campaigns.
        without_guarantee: Whether campaigns with NoPrivacy are allowed. One round of them makes
            epsilon infinite, so that every later RecordDp campaign on this dataset is refused.
        budget_statement: Whether what is spent leaves the site, signed, beside every update.
        hold: Whether an update waits, ready to leave, for the operator's word on that very round.
        client: Limit for the whole site; None: no campaign under local ClientDp takes place here.
        witness: Who keeps copies of the ledgers' entries; a guarantee needs at least two, and one
            that the coordinator does not run.
    """

    dataset: Name
    unit: Unit = ROW
    max_rows_per_unit: Count = 1
    adjacency: Literal["add_remove"] = "add_remove"
    epsilon: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)]
    delta: Delta
    series: Series | None = None
    rdp_order: Annotated[float, Field(gt=1, le=1024)] | None = None
    base_models: Allowed
    suites: Allowed
    campaigns: tuple[Sha256, ...] = ()
    without_guarantee: bool = False
    budget_statement: Literal["stated", "withheld"] = "stated"
    hold: bool = False
    client: ClientLimit | None = None
    witness: tuple[Witness, ...] = ()

    @model_validator(mode="after")
    def _any_stands_alone(self) -> Self:
        for name in ("base_models", "suites"):
            allowed = getattr(self, name)
            if ANY in allowed and len(allowed) > 1:
                msg = f'{name} is either "*" or a list of hashes'
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _witnesses_differ(self) -> Self:
        names = [each.text for each in self.witness]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"witness {twice[0]!r} is named twice, and is one witness; name another"
            raise ValueError(msg)
        return self

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Who keeps copies of the ledgers' entries."""
        return self.witness

    def client_policy(self) -> "SitePolicy | None":
        """Return the limit for the site's whole data as a policy of unit ``site``, or None.

        For the second ledger, which local ClientDp charges; the first one counts rows or persons.
        """
        if self.client is None:
            return None
        return self.model_copy(
            update={
                "unit": SITE,
                "max_rows_per_unit": 1,
                "epsilon": self.client.epsilon,
                "delta": self.client.delta,
                "series": None,
                # No RDP decides there; a fixed order keeps the terms when the limit is changed.
                "rdp_order": UNUSED_RDP_ORDER,
                "client": None,
            }
        )

    @property
    def terms(self) -> Terms:
        """What a first charge fixes."""
        order = self.rdp_order or default_rdp_order(self.epsilon, self.delta)
        return Terms(rdp_order=order, series=self.series)


def default_rdp_order(epsilon: float, delta: float) -> float:
    """Return an order that serves DP-SGD well at this budget, rounded to tenths.

    For Gaussian releases without sampling the best order is ``1 + x`` with ``x = sqrt(L) /
    (sqrt(L + epsilon) - sqrt(L))``, ``L = ln(1 / delta)`` (minimise ``a r + L / (a - 1)`` over a
    at the r that ends at epsilon). Sampling lowers it; 0.65 x is within a few percent of the best
    order's epsilon for epsilon 1 to 11, rates .01 to .1. Any order is sound, a poor one wasteful;
    none below 1.7 is chosen, where dp_accounting 0.6.0 answers inf for sampled Gaussian steps.
    """
    root = math.sqrt(math.log(1 / delta))
    best = root / (math.sqrt(root * root + epsilon) - root)
    return round(1 + max(0.65 * best, 0.7), 1)


class Approval(Document):
    """The site's consent to one frozen campaign.

    Attributes:
        campaign_digest: Digest of the campaign, which covers every number in it.
        campaign: Its id, for people.
        approved: When, UTC.
    """

    campaign_digest: Sha256
    campaign: Name
    approved: AwareDatetime
