"""The coordinator's own folder for the federation's ledger: its limits and its key.

The ledger itself lies in the campaigns' store, where the sites read it. What may be spent, and the
key that signs, stay here: whoever holds both could spend, so the folder belongs to the coordinator
alone. So do copies of the entries: a store that was set back to an older backup gets them back
before anything is charged on it. Campaigns whose noise the sites add need none of it.
"""

import logging
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.campaign.complaints import complaint_of
from fl_core.errors import CampaignError, PolicyRefused
from fl_core.privacy.budget import spend
from fl_core.privacy.federation import (
    Federation,
    FederationLimits,
    create_federation,
    identity,
    open_federation,
    require_federation,
)
from fl_core.privacy.federation_witness import put_back, witness_federation
from fl_core.rounds.central_release import NO_FEDERATION, Coordinator
from fl_core.updates.signing import (
    fingerprint,
    generate_key,
    public_hex,
    read_key,
    write_key,
)
from tasks.settings import Settings

log = logging.getLogger(__name__)

LIMITS = """\
# What all campaigns of this store together may spend of a whole site's privacy, where the
# coordinator adds the noise (privacy.client with mechanism "gaussian").
# A higher epsilon is a promise broken to every site that took part before.

epsilon = {epsilon!r}    # over all campaigns, ever
delta = {delta!r}      # at which epsilon is worked out; campaigns with a larger one are refused
"""


@dataclass(frozen=True, slots=True)
class FederationHome:
    """Paths inside the coordinator's folder for the federation's ledger."""

    root: Path

    @property
    def limits(self) -> Path:
        """The limits, TOML."""
        return self.root / "federation.toml"

    @property
    def key(self) -> Path:
        """The private key, mode 0600."""
        return self.root / "federation.pem"

    @property
    def copies(self) -> LocalStore:
        """Copies of the ledger's entries; they outlive an older backup of the store."""
        return LocalStore(self.root / "copies")


def make_federation(
    home: FederationHome, *, limits: FederationLimits, store: ObjectStore
) -> Federation:
    """Write limits and key into the folder and the ledger's genesis into the store, once.

    What a crash left half made is finished by running it again.

    Raises:
        CampaignError: The folder holds limits for a ledger that is there already.
        PolicyRefused: The store has a ledger of another key; a second would forget what is spent.
    """
    put_back(store, home.copies)
    found = identity(store)
    if found is not None and not (home.key.exists() and _is_own(home, found.public_key)):
        raise PolicyRefused(
            f"the store has a ledger of the federation, signed by key {found.public_key[:16]}..., "
            f"and {home.root} holds another key or none; name the folder that it was made with "
            "in FEDLOOM_FEDERATION"
        )
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not home.key.exists():
        write_key(generate_key(), home.key)
    text = LIMITS.format(epsilon=limits.epsilon, delta=limits.delta)
    try:
        with home.limits.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        limits = read_limits(home)
    try:
        return create_federation(
            store, limits=limits, key=read_key(home.key), now=datetime.now(UTC)
        )
    except PolicyRefused as error:
        raise CampaignError(
            f"{home.root}: the federation's ledger is made already; its limits are in {home.limits}"
        ) from error


def _is_own(home: FederationHome, public_key: str) -> bool:
    return public_hex(read_key(home.key)) == public_key


def read_limits(home: FederationHome) -> FederationLimits:
    """Read the limits as they are now.

    Raises:
        CampaignError: Absent, not TOML, or a field is wrong; names file and field.
    """
    source = str(home.limits)
    try:
        plain = tomllib.loads(home.limits.read_text(encoding="utf-8"))
        return FederationLimits.model_validate(plain)
    except OSError as error:
        raise CampaignError(
            f"{source}: cannot be read: {error.strerror}",
            hint="`fedloom federation init --epsilon E --delta D` writes it",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CampaignError(f"{source}: is not TOML: {error}") from error
    except ValidationError as error:
        complaint = complaint_of(error, FederationLimits, whole="limits")
        raise CampaignError(f"{source}: {complaint}") from error


def checked_limits(*, epsilon: float, delta: float) -> FederationLimits:
    """Return limits that a person gave.

    Raises:
        CampaignError: One is outside its range.
    """
    try:
        return FederationLimits(epsilon=epsilon, delta=delta)
    except ValidationError as error:
        raise CampaignError(complaint_of(error, FederationLimits, whole="limits")) from error


def federation_document(settings: Settings, store: ObjectStore) -> dict[str, Any]:
    """Return the federation's ledger as plain values, with what it amounts to under the limits.

    Raises:
        CampaignError: The folder's limits or key cannot be read.
        PolicyRefused: This process keeps no ledger of the federation.
        LedgerCorrupt: The ledger does not hold.
    """
    federation = _kept(settings, store)
    if federation is None:
        raise CampaignError(
            "FEDLOOM_FEDERATION is not set, so this process keeps no ledger of the federation",
            hint="`fedloom federation init` makes one, once per store",
        )
    chain = federation.ledger.chain()
    spent = spend(federation.policy, chain.events())
    return {
        "fingerprint": fingerprint(federation.ledger.public_key),
        "epsilon": spent.epsilon,
        "epsilon_limit": federation.policy.epsilon,
        "delta": federation.policy.delta,
        "accountant": spent.accountant,
        "entries": [entry.model_dump(mode="json", exclude_none=True) for entry in chain.entries],
    }


def open_coordinator(assembly: Assembly, settings: Settings, store: ObjectStore) -> Coordinator:
    """Return what this process can charge for a campaign; nothing where the sites add the noise.

    Raises:
        CampaignError: The folder's limits or key cannot be read.
        PolicyRefused: The campaign's noise is the coordinator's, and this process has no ledger of
            the federation to charge, or one whose delta is smaller than the campaign's.
        LedgerCorrupt: The ledger in the store is not the one that this coordinator has copies of.
    """
    if assembly.central_noise is None:
        return NO_FEDERATION
    return Coordinator(require_federation(_kept(settings, store), assembly.campaign))


def known_federation(
    assembly: Assembly, settings: Settings, store: ObjectStore
) -> Federation | None:
    """Return the ledger that pays for a campaign, for whoever only shows where it stands.

    None where the sites add the noise, or where this process was given no ledger.
    """
    return None if assembly.central_noise is None else _opened(settings, store)


def _kept(settings: Settings, store: ObjectStore) -> Federation | None:
    """Open the ledger once its copies agree: what an older store lost comes back first."""
    if settings.federation is None:
        return None
    copies = FederationHome(settings.federation).copies
    returned = put_back(store, copies)
    if returned:
        log.warning("the store was set back; its ledger got entries back n=%d", returned)
    federation = _opened(settings, store)
    # A reserve is copied before its release is drawn, because each step opens the ledger anew.
    witness_federation(store, copies)
    return federation


def _opened(settings: Settings, store: ObjectStore) -> Federation | None:
    if settings.federation is None:
        return None
    home = FederationHome(settings.federation)
    return open_federation(store, limits=read_limits(home), key=read_key(home.key))
