"""A site's own folder: key, config, policy, ledger, outbox.

Written by `fedloom site init`, read by the site's worker, owned by the site alone. The config says
where things are; what is *allowed* is in the policy.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fl_core.artifacts.documents import Document
from fl_core.artifacts.local import LocalStore, require_local_disk
from fl_core.campaign.specs import Name
from fl_core.errors import CampaignError
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.policy import SitePolicy, read_policy
from fl_core.rounds.site_round import Site
from fl_core.updates.outbox import Outbox
from fl_core.updates.signing import read_key
from tasks.settings import Settings


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
        prefect_api_url: API that the worker polls; outgoing only.
        store: The campaign's store.
        base_models: Folders of base models by the name that campaigns use.
        suites: Folder of suites beside the built-in ones.
        threads: CPU threads of training.
        idle_s: A session without work ends after so many seconds.
    """

    site: Name
    data: Path
    prefect_api_url: str
    store: SiteStore
    base_models: dict[str, Path] = Field(default_factory=dict)
    suites: Path | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    idle_s: Annotated[float, Field(gt=0)] = 3600.0


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
        path.mkdir(parents=True, exist_ok=True)
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
    except tomllib.TOMLDecodeError as error:
        raise CampaignError(f"{home.config}: is not TOML: {error}") from error
    try:
        return SiteConfig.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CampaignError(f"{home.config}: {where}: {first['msg'].lower()}") from error


def site_policy(home: SiteHome) -> SitePolicy:
    """Read the site's policy with its approvals, as they are now."""
    return read_policy(home.policy, approvals=home.store("approvals"))


def open_site(home: SiteHome, config: SiteConfig) -> Site:
    """Return the site with key, policy, ledger and outbox.

    Raises:
        LedgerCorrupt: There is no ledger, or it does not hold.
    """
    key = read_key(home.key)
    policy = site_policy(home)
    ledger = Ledger(home.store("ledger"), dataset=policy.dataset, unit=policy.unit, key=key)
    return Site(
        name=config.site,
        key=key,
        policy=policy,
        ledger=ledger,
        outbox=Outbox(home.store("outbox")),
    )


def site_settings(home: SiteHome, config: SiteConfig) -> Settings:
    """Return the settings with which the site reaches the campaign's store."""
    credentials = config.store.credentials_file
    return Settings(
        store_url=config.store.url,
        s3_endpoint=config.store.endpoint,
        s3_credentials_file=None if credentials is None else home.root / credentials,
    )
