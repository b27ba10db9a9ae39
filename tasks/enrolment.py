"""Making a site, and admitting it.

`fedloom site init` runs at the site: key, config, policy and the ledger's genesis, once per
dataset. `fedloom enrol` runs at the coordinator and only admits a public key.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fl_core.artifacts.documents import Document, from_bytes, to_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.campaign.roster import PublicKey, Roster, RosterEntry, enrol
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError, ObjectCorrupt
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy import parse_policy
from fl_core.updates.signing import generate_key, public_hex, write_key
from tasks.site_config import LEDGER, SiteConfig, SiteHome, config_text, surroundings
from tasks.unit_key import read_unit_key
from tasks.witnesses import prepare_witnesses, require_unknown


class Enrolment(Document):
    """What a site gives to the coordinator: a name, a public key, a public size.

    Attributes:
        site: Name, as campaigns use it.
        signing_key: Ed25519 public key, hex.
        declared_examples: Public size, typed by the owner, a power of two; or None.
    """

    site: Name
    signing_key: PublicKey
    declared_examples: Annotated[int, Field(ge=1, le=1 << 40)] | None = None


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
    if home.key.exists() or home.config.exists() or (home.root / LEDGER).exists():
        raise CampaignError(
            f"{home.root}: there is a site here already; its ledger is never made again",
            hint="choose another folder for another dataset",
        )
    home.root.mkdir(parents=True, exist_ok=True)
    key = generate_key()
    enrolment = Enrolment(
        site=new.config.site,
        signing_key=public_hex(key),
        declared_examples=(
            None if new.declared_examples is None else rounded_size(new.declared_examples)
        ),
    )
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
    home.enrolment.write_bytes(to_bytes(enrolment))
    write_key(key, home.key)
    home.config.write_text(config_text(new.config), encoding="utf-8")
    return enrolment


def read_enrolment(path: Path) -> Enrolment:
    """Read the file that a site's operator sent.

    Raises:
        CampaignError: Absent, or not an enrolment.
    """
    hint = "it is the enrol.json that `fedloom site init` wrote at the site"
    try:
        return from_bytes(Enrolment, path.read_bytes(), what=str(path))
    except OSError as error:
        raise CampaignError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except ObjectCorrupt as error:
        # The file came from a person's hands, so it is input to correct and no damaged object.
        raise CampaignError(str(error), hint=hint) from error


def admit(store: ObjectStore, enrolment: Enrolment) -> Roster:
    """Write the next roster with the site's key.

    Raises:
        CampaignError: The name is enrolled with another key.
    """
    return enrol(
        store,
        RosterEntry(
            site=enrolment.site,
            signing_key=enrolment.signing_key,
            declared_examples=enrolment.declared_examples,
            since=datetime.now(UTC),
        ),
    )
