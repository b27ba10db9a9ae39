"""The policy as people write it, and approvals beside it.

``policy.toml`` belongs to the site's owner: it keeps its comments and is never rewritten by us.
What a command adds, the approval of one campaign, is a write-once document in the site's own
store, so a policy is the file plus its approvals.
"""

import tomllib
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document, from_bytes, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.specs import Name, Sha256
from fl_core.errors import CampaignError, ObjectCorrupt
from fl_core.privacy.policy import SitePolicy


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


def approve(approvals: ObjectStore, campaign: Campaign, now: AwareDatetime) -> Approval:
    """Write down that the site takes part in a locked campaign; a second time changes nothing.

    Raises:
        CampaignError: The campaign is not locked, so there is nothing fixed to approve.
    """
    approval = Approval(campaign_digest=campaign.digest, campaign=campaign.id, approved=now)
    return write_document(approvals, keys.approval(campaign.digest), approval)


def approved_digests(approvals: ObjectStore) -> tuple[Sha256, ...]:
    """Return the digests of all approved campaigns, sorted.

    Raises:
        ObjectCorrupt: An object under ``approvals/`` is no approval, or not of its own name.
    """
    digests = []
    for key in approvals.list(keys.APPROVALS):
        digest = from_bytes(Approval, approvals.get(key), what=key).campaign_digest
        if key != keys.approval(digest):
            raise ObjectCorrupt(f"{key} approves {digest[:16]}..., another campaign than its name")
        digests.append(digest)
    return tuple(sorted(digests))


def read_policy(path: Path, *, approvals: ObjectStore | None = None) -> SitePolicy:
    """Read ``policy.toml`` and add what was approved beside it.

    Raises:
        CampaignError: The file is absent, not TOML, or a field is wrong; names file and field.
        ObjectCorrupt: An approval does not hold.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CampaignError(
            f"{path}: cannot be read: {error.strerror}", hint="`fedloom site init` writes a policy"
        ) from error
    except UnicodeDecodeError as error:
        raise CampaignError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    policy = parse_policy(text, source=str(path))
    if approvals is None:
        return policy
    digests = sorted({*policy.campaigns, *approved_digests(approvals)})
    return policy.model_copy(update={"campaigns": tuple(digests)})


def parse_policy(text: str, *, source: str) -> SitePolicy:
    """Read a policy from the text of its file; ``source`` is named in errors.

    Raises:
        CampaignError: Not TOML, or a field is wrong; one line with field, value and remedy.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CampaignError(f"{source}: is not TOML: {error}") from error
    try:
        return SitePolicy.model_validate(plain)
    except ValidationError as error:
        raise CampaignError(f"{source}: {_complaint(error)}") from error


def _complaint(error: ValidationError) -> str:
    first, *others = error.errors()
    more = f" (and {len(others)} more)" if others else ""
    field = ".".join(map(str, first["loc"])) or "policy"
    if first["type"] == "extra_forbidden":
        return f"unknown key {field!r}; known keys are {', '.join(SitePolicy.model_fields)}{more}"
    if first["type"] == "missing":
        return f"{field} is missing; the policy has no default for it{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = f" is {first['input']!r}" if isinstance(first["input"], str | int | float) else ""
    return f"{field}{value}: {message[:1].lower()}{message[1:]}{more}"


POLICY_TEMPLATE = """\
# What this site allows on one dataset. Only people at the site change this file; fedloom reads it
# before every round and never writes it. `fedloom site approve` adds approvals beside it.

# Opaque id of the protected data: lower case, digits, "-". All campaigns on the same rows share
# one ledger, so never give the same rows a second id. It leaves the site in budget statements.
dataset = "{dataset}"

# Whom the limit protects: one row, added or removed. More than one row of a person means that the
# person is protected less than a row; fedloom cannot bound that yet.
unit = "row"
max_rows_per_unit = 1
adjacency = "add_remove"

# The limit over all campaigns on this dataset, ever. A round that would pass it is declined.
# Rough reading: epsilon up to 1 is strong, up to 10 is common in practice, above says little.
epsilon = 8.0
# Probability outside the limit; well below one over the number of rows. A campaign that states a
# larger delta is refused.
delta = 1e-5

# Order at which RDP decides; fixed by the first round too. Left out, it follows from epsilon and
# delta. Any number above 1 is sound; a poor one declines earlier than needed.
#rdp_order = 3.0

# Content hashes (SHA-256) of base models that may be trained here, or "*" for any.
base_models = "*"
# Content hashes of the expectation suites that may judge the rows, or "*" for any.
suites = "*"

# Digests of approved campaigns; `fedloom site approve CAMPAIGN` is the usual way.
campaigns = []

# Whether campaigns without any guarantee (privacy.none) may train here. One round of them is
# charged as infinite: afterwards every campaign with a guarantee is declined on this dataset.
without_guarantee = false

# Steps that are counted tightly (by PLD): all with exactly this noise and this sampling rate, at
# most max_steps over all campaigns. Decide before the first round; afterwards a change is refused.
# Without [series], or for any other step, the more cautious RDP decides.
#[series]
#noise_multiplier = 0.8
#sampling_rate = 0.1
#max_steps = 48
"""
