"""Making a site, and admitting it.

`fedloom site init` runs at the site: keys, config, policy and the ledger's genesis, once per
dataset. `fedloom enrol` runs at the coordinator and only admits public keys. What the site sends is
signed by its signing key, so the one fingerprint that two people compare aloud covers all of it,
the certificate that opens connections too.
"""

import secrets
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fl_core.artifacts.documents import Document, to_bytes
from fl_core.artifacts.replacing import replace_file
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import Identify, PublicKey, Roster, RosterEntry, enrol, latest_roster
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy import parse_policy
from fl_core.updates.signing import (
    SigningKey,
    generate_key,
    public_hex,
    sign,
    verify_signature,
    write_key,
)
from tasks.certificates import make_certificate, require_site_certificate
from tasks.gateway_access import TLS_CERTIFICATE, TLS_KEY
from tasks.handed_files import read_handed
from tasks.site_config import LEDGER, SiteConfig, SiteHome, config_text, surroundings
from tasks.unit_key import read_unit_key
from tasks.witnesses import prepare_witnesses, require_unknown

_LIKELY_TIMES = 16


class Enrolment(Document):
    """What a site gives to the coordinator: a name, its public keys, a public size.

    Attributes:
        site: Name, as campaigns use it.
        signing_key: Ed25519 public key, hex.
        certificate: The site's TLS certificate, PEM; None for a site that uses no gateway.
        identify: How it shows the gateway who it is; None for one that uses none.
        declared_examples: Public size, typed by the owner, a power of two; or None.
        signature: Ed25519 of the signing key over the rest.
    """

    site: Name
    signing_key: PublicKey
    certificate: Annotated[str, Field(max_length=4096)] | None = None
    identify: Identify | None = None
    declared_examples: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = ""


@dataclass(frozen=True, slots=True)
class NewSite:
    """What `fedloom site init` is told.

    Attributes:
        config: The site's config.
        policy_text: The policy's TOML, with ``{dataset}`` still to be filled.
        declared_examples: Public size, rounded to a power of two; None to declare none.
        dataset: Opaque id of the protected data; None draws one.
        is_new_data: No ledger was ever kept for these rows, whatever witnesses know of the site.
    """

    config: SiteConfig
    policy_text: str
    declared_examples: int | None = None
    dataset: str | None = None
    is_new_data: bool = False


def rounded_size(declared: int) -> int:
    """Return the power of two next to a declared size (SOUNDNESS, rule 5)."""
    lower = 1 << (declared.bit_length() - 1)
    return lower if declared - lower <= 2 * lower - declared else 2 * lower


def make_site(home: SiteHome, new: NewSite) -> Enrolment:
    """Make a site's folder with key, config, policy and the ledger's genesis.

    Raises:
        CampaignError: There is a site in the folder already; a ledger is never made again.
        PolicyRefused: A witness knows a ledger of this dataset, or of this site.
    """
    require_no_site(home)
    # Sizes and times of its files tell how many rows there are and when training ended.
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = generate_key()
    dataset = new.dataset or f"{new.config.site}-{secrets.token_hex(4)}"
    text = new.policy_text.replace("{dataset}", dataset)
    policy, around = parse_policy(text, source="the policy"), surroundings(home, new.config)
    require_unknown(policy, around, site=new.config.site, is_new_data=new.is_new_data)
    home.policy.write_text(text, encoding="utf-8")
    prepare_witnesses(policy, around, site=new.config.site)
    # Now, so that it is in the first backup of the folder.
    read_unit_key(home)
    Ledger.create(
        home.store(LEDGER),
        dataset=policy.dataset,
        unit=policy.unit,
        key=key,
        now=datetime.now(UTC),
    )
    enrolment = write_enrolment(home, new.config, key=key, declared_examples=new.declared_examples)
    write_key(key, home.key)
    home.config.write_text(config_text(new.config), encoding="utf-8")
    return enrolment


def require_no_site(home: SiteHome) -> None:
    """Refuse a folder in which a site was made.

    Raises:
        CampaignError: There is one; a ledger is never made again.
    """
    if home.key.exists() or home.config.exists() or (home.root / LEDGER).exists():
        raise CampaignError(
            f"{home.root}: there is a site here already; its ledger is never made again",
            hint="choose another folder for another dataset; for another gateway, run `fedloom "
            "site gateway --invite FILE`",
        )


def write_enrolment(
    home: SiteHome, config: SiteConfig, *, key: SigningKey, declared_examples: int | None
) -> Enrolment:
    """Write the site's enrolment, with a TLS key and certificate where it uses a gateway.

    Args:
        home: The site's folder.
        config: Its config.
        key: Its signing key.
        declared_examples: Public size; rounded to a power of two.
    """
    stated = None if declared_examples is None else rounded_size(declared_examples)
    enrolment = Enrolment(
        site=config.site,
        signing_key=public_hex(key),
        certificate=None if config.gateway is None else _certificate(home, config.site),
        identify=None if config.gateway is None else config.gateway.identify,
        declared_examples=stated,
    )
    signed = sign(enrolment, key)
    replace_file(home.enrolment, to_bytes(signed))
    return signed


def _certificate(home: SiteHome, site: str) -> str:
    path, key_path = home.root / TLS_CERTIFICATE, home.root / TLS_KEY
    if path.exists() and key_path.exists():
        return path.read_text(encoding="ascii")
    return make_certificate(path, key_path, common_name=site)


def read_own_enrolment(home: SiteHome) -> Enrolment:
    """Read what the site itself wrote when it was made; one of an earlier fedloom is unsigned.

    Raises:
        CampaignError: Absent, or not an enrolment.
    """
    hint = "restore the site's folder from its backup"
    return read_handed(Enrolment, home.enrolment, hint=hint)


def read_enrolment(path: Path) -> Enrolment:
    """Read the file that a site's operator sent.

    Raises:
        CampaignError: Absent, not an enrolment, or not signed by the key that it names.
    """
    hint = "it is the enrol.json that `fedloom site init` wrote at the site"
    enrolment = read_handed(Enrolment, path, hint=hint)
    if not enrolment.signature:
        raise CampaignError(
            f"{path}: is not signed, so it is of an earlier fedloom; expected a signed enrolment",
            hint="install this fedloom at the site and run `fedloom site enrolment` there",
        )
    if not verify_signature(enrolment, enrolment.signing_key):
        raise CampaignError(
            f"{path}: its signature does not hold, so it was changed since the site wrote it",
            hint="have it sent again; " + hint,
        )
    if enrolment.certificate is not None:
        require_site_certificate(enrolment.certificate, site=enrolment.site)
    return enrolment


def _require_likely_size(roster: Roster, enrolment: Enrolment) -> None:
    """Refuse a size that stalls rounds under ``quorum_share``, whose sum of sizes it decides."""
    known, stated = roster.entry(enrolment.site), enrolment.declared_examples
    before = None if known is None else known.declared_examples
    if stated == before:
        return
    hint = "confirm it by voice with the site's operator, and enrol with --replace"
    if stated is None:
        raise CampaignError(
            f"site {enrolment.site!r} declares no size any more, expected one beside {before:,} "
            "before; rounds of campaigns with cohort.quorum_share cannot be opened without",
            hint=hint,
        )
    others = [
        each.declared_examples
        for each in roster.entries
        if each.revoked is None and each.site != enrolment.site and each.declared_examples
    ]
    if others and stated > _LIKELY_TIMES * statistics.median(others):
        raise CampaignError(
            f"site {enrolment.site!r} declares {stated:,} examples, expected at most "
            f"{_LIKELY_TIMES} times the others' median of {statistics.median(others):,.0f}",
            hint=hint,
        )


def admit(store: ObjectStore, enrolment: Enrolment, *, is_confirmed: bool = False) -> Roster:
    """Write the next roster with the site's keys.

    Args:
        store: The campaigns' store.
        enrolment: What the site sent, its signature checked.
        is_confirmed: A person confirmed with the site's operator that these keys take the place of
            lost or withdrawn ones, and that the declared size is right.

    Raises:
        CampaignError: As ``fl_core.campaign.roster.enrol``; or the declared size would decide
            rounds by itself, or is gone, and nobody confirmed it.
    """
    if not is_confirmed:
        _require_likely_size(latest_roster(store), enrolment)
    return enrol(
        store,
        RosterEntry(
            site=enrolment.site,
            signing_key=enrolment.signing_key,
            certificate=enrolment.certificate,
            identify=enrolment.identify,
            declared_examples=enrolment.declared_examples,
            since=datetime.now(UTC),
        ),
        is_confirmed=is_confirmed,
    )
