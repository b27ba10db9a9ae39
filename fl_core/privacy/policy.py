"""The site's policy: read from its file, and held against a campaign.

``policy.toml`` belongs to the site's owner: it keeps its comments and is never rewritten by us.
What a command adds, the approval of one campaign, is a write-once document in the site's own
store, so a policy is the file plus its approvals. What the ledger may still be charged is decided
in ``budget``; its names are repeated here, so that whoever enforces a policy imports one module.
"""

import tomllib
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from fl_core.artifacts import keys
from fl_core.artifacts.documents import from_bytes, write_document
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.complaints import complaint_of
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import SITE, ClientDp, RecordDp
from fl_core.campaign.specs import Sha256
from fl_core.errors import CampaignError, ObjectCorrupt, PolicyRefused
from fl_core.privacy.budget import Spend, require_allowed_without_guarantee, spend, verdict
from fl_core.privacy.mechanism import MECHANISMS, NoiseSetting
from fl_core.privacy.policy_documents import ANY, Approval, SitePolicy
from fl_core.privacy.policy_template import POLICY_TEMPLATE
from fl_core.updates.records import Series, Terms

__all__ = [
    "POLICY_TEMPLATE",
    "Approval",
    "Series",
    "SitePolicy",
    "Spend",
    "Terms",
    "approve",
    "approved_digests",
    "parse_policy",
    "read_policy",
    "require_allowed",
    "spend",
    "verdict",
]


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
        policy = SitePolicy.model_validate(plain)
    except ValidationError as error:
        raise CampaignError(
            f"{source}: {complaint_of(error, SitePolicy, whole='policy')}"
        ) from error
    if policy.unit == SITE:
        # A column of that name: its ledger would be taken for that of the site's whole data.
        raise CampaignError(
            f'{source}: unit is "site", which [client] limits; give the column another name'
        )
    return policy


def require_allowed(policy: SitePolicy, campaign: Campaign) -> None:
    """Check a locked campaign against everything the policy states but the budget.

    Raises:
        PolicyRefused: With the policy's field that stands against it.
    """
    if campaign.digest not in policy.campaigns:
        raise PolicyRefused(
            f"policy field 'campaigns' does not hold digest {campaign.digest[:16]}... of campaign "
            f"{campaign.id!r}; read it, then run `fedloom site approve`"
        )
    contents = {
        "base_models": (campaign.base_model, policy.base_models),
        "suites": (campaign.gate, policy.suites),
    }
    for field, (content, allowed) in contents.items():
        if ANY not in allowed and content.sha256 not in allowed:
            raise PolicyRefused(
                f"policy field {field!r} does not hold {content.name!r} with hash "
                f"{str(content.sha256)[:16]}...; add the hash if the site agrees"
            )
    local = _is_noised_at_sites(campaign.privacy.client)
    _require_client_limit(policy, campaign, is_local=local)
    record = campaign.privacy.record
    if record is not None:
        _require_as_strong(policy, record)
    elif not local:
        require_allowed_without_guarantee(policy)


def _is_noised_at_sites(client: ClientDp | None) -> bool:
    if client is None:
        return False
    mechanism = MECHANISMS.build(ComponentSpec(kind=client.mechanism))
    # Which stage a mechanism noises does not depend on the sizes.
    return mechanism.plan(client, NoiseSetting(steps=1, sites=1, dimension=1)).stage != "release"


def _require_client_limit(policy: SitePolicy, campaign: Campaign, *, is_local: bool) -> None:
    client = campaign.privacy.client
    if policy.client is None:
        if is_local:
            raise PolicyRefused(
                "policy has no [client] section and the campaign protects whole sites by their own "
                "noise; state the site's epsilon and delta in [client] to take part"
            )
        return
    if client is None or not is_local:
        raise PolicyRefused(
            "policy section [client] limits what leaves about the site's whole data, and the "
            "campaign adds no noise for that at the site; only privacy.client with "
            'mechanism "local_gaussian" does'
        )
    if client.delta > policy.client.delta:
        raise PolicyRefused(
            f"policy field 'client.delta' is {policy.client.delta:g} and the campaign states "
            f"{client.delta:g}; a larger delta makes any epsilon cheap, use one no larger"
        )


def _require_as_strong(policy: SitePolicy, record: RecordDp) -> None:
    if record.delta > policy.delta:
        raise PolicyRefused(
            f"policy field 'delta' is {policy.delta:g} and the campaign states {record.delta:g}; "
            "a larger delta makes any epsilon cheap, so use one that is no larger"
        )
    stated = {
        "unit": (policy.unit, record.unit),
        "max_rows_per_unit": (policy.max_rows_per_unit, record.max_rows_per_unit),
        "adjacency": (policy.adjacency, record.adjacency),
    }
    for field, (own, asked) in stated.items():
        if own != asked:
            raise PolicyRefused(
                f"policy field {field!r} is {own!r} and the campaign states {asked!r}; "
                "the ledger counts the policy's unit only"
            )
