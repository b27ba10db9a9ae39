"""The signed manifest of an update, and the signed refusal of a site.

A manifest binds a payload to one campaign, round, base adapter and site, so that it is worth
nothing anywhere else. It is uploaded last: its presence means that the update is complete.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fl_core.artifacts.documents import Document
from fl_core.campaign.specs import Name, Sha256
from fl_core.updates.records import Charge, GateReport, RuleNames

Signature = Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")]


class UpdateManifest(Document):
    """What a site states about its update.

    Attributes:
        campaign_digest: Digest of the campaign the site trained for.
        round: Round, from 1.
        site: Who signs.
        base_hash: Content hash of the global adapter that training started from.
        payload_sha256: SHA-256 of the payload's bytes.
        payload_bytes: Length of the payload.
        codec: Kind of the codec that encoded it.
        shapes: Shape of every tensor by name.
        local_steps: Optimizer steps taken.
        norm_bound: L2 bound of the update if one was enforced, else None.
        charge: The site's charge for one unit of its rows; None where nothing is promised.
        client_charge: The site's charge for its whole data under local ClientDp, else None.
        gate: Verdict on the site's rows.
        code_version: Version of fedloom at the site.
        signature: Ed25519 over the canonical JSON of the rest, hex; empty while unsigned.
    """

    campaign_digest: Sha256
    round: Annotated[int, Field(ge=1)]
    site: Name
    base_hash: Sha256
    payload_sha256: Sha256
    payload_bytes: Annotated[int, Field(ge=0)]
    codec: str
    shapes: dict[str, tuple[int, ...]]
    local_steps: Annotated[int, Field(ge=0)]
    norm_bound: float | None = None
    charge: Charge | None = None
    client_charge: Charge | None = None
    gate: GateReport
    code_version: Annotated[str, Field(max_length=100)]
    signature: Signature = ""


ErrorClass = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,79}$")]
DeclineReason = Literal["gate", "budget", "policy", "left", "no_update"]
"""``left`` is a farewell: the site takes part in no later round of the campaign."""


class Declined(Document):
    """A site's refusal to take part in one round.

    Under DP everything that goes wrong after training began is the one code ``no_update``
    (SOUNDNESS, rule 18); the other reasons are decided before any private forward pass.

    Attributes:
        reason: Why.
        rules: Names of broken gate rules or of the policy's fields; never values.
        error: Class of what went wrong, never its text; under NoPrivacy only.
    """

    campaign_digest: Sha256
    round: Annotated[int, Field(ge=1)]
    site: Name
    reason: DeclineReason
    rules: RuleNames = ()
    error: ErrorClass | None = None
    signature: Signature = ""
