"""Where a process finds the servers and folders it needs, read once from its environment.

| variable | meaning |
|---|---|
| FEDLOOM_STORE | ``s3://bucket/prefix`` or ``file:///folder``: the campaigns' store |
| FEDLOOM_S3_ENDPOINT | base URL of an S3-compatible server; left out for AWS |
| FEDLOOM_S3_ACCESS_KEY, FEDLOOM_S3_SECRET_KEY | credentials, both or neither |
| FEDLOOM_S3_CREDENTIALS_FILE | instead: a file with both, a line each, readable by its owner only |
| MLFLOW_TRACKING_URI | MLflow server; without it nothing is logged |
| FEDLOOM_FEDERATION | folder that `fedloom federation init` made; coordinator only |
| FEDLOOM_HOLDOUTS | folder with the coordinator's public holdouts |
| FEDLOOM_MODELS | folder with base models, one folder each |
| FEDLOOM_SUITES | folder with expectation suites of one's own |

Without credentials boto3 looks where it always does (profile, instance role). Values may be
secrets, so an error names the variable and says what is wrong, and shows no key.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from fl_core.artifacts.documents import Document
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import CampaignError
from tasks.gateway_access import SiteDoor
from tasks.object_store import S3Location, connect

_VARIABLES = {
    "store_url": "FEDLOOM_STORE",
    "s3_endpoint": "FEDLOOM_S3_ENDPOINT",
    "s3_access_key": "FEDLOOM_S3_ACCESS_KEY",
    "s3_secret_key": "FEDLOOM_S3_SECRET_KEY",
    "s3_credentials_file": "FEDLOOM_S3_CREDENTIALS_FILE",
    "mlflow_uri": "MLFLOW_TRACKING_URI",
    "federation": "FEDLOOM_FEDERATION",
}
_FOLDERS = {
    "holdouts": "FEDLOOM_HOLDOUTS",
    "models": "FEDLOOM_MODELS",
    "suites": "FEDLOOM_SUITES",
}


class Settings(Document):
    """Addresses and credentials of one process; the module says what each is for.

    Attributes:
        store_url: The campaigns' store.
        s3_endpoint: None is AWS.
        s3_access_key: None with ``s3_secret_key`` and no file: boto3's own chain.
        s3_secret_key: Never shown.
        s3_credentials_file: Holds both keys; excludes the two above.
        mlflow_uri: None: nothing is logged.
        federation: Limits and key of the federation's ledger; None: campaigns with noise of the
            coordinator are refused.
    """

    store_url: str
    s3_endpoint: str | None = None
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_credentials_file: Path | None = None
    mlflow_uri: str | None = None
    federation: Path | None = None
    door: SiteDoor | None = None


class Folders(Document):
    """Where this machine keeps what campaigns name; a store is not needed to know it.

    Attributes:
        holdouts: Public holdouts, one file each; None: this process evaluates nothing.
        models: Base models, one folder each; None: they come from packages and hubs only.
        suites: Expectation suites; None: gates are the suites that come with fedloom.
    """

    holdouts: Path | None = None
    models: Path | None = None
    suites: Path | None = None


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this process; an empty variable counts as not set.

    Raises:
        CampaignError: A variable is missing or cannot be used; the text names it.
    """
    values = {field: environ[name] for field, name in _VARIABLES.items() if environ.get(name)}
    if "store_url" not in values:
        _refuse("store_url", "is not set", "s3://bucket/prefix or file:///folder")
    settings = Settings.model_validate(values)
    store_location(settings)
    return settings


def read_folders(environ: Mapping[str, str] = os.environ) -> Folders:
    """Return the folders that this process was given; an empty variable counts as not set."""
    named = {field: environ[name] for field, name in _FOLDERS.items() if environ.get(name)}
    return Folders.model_validate(named)


def open_store(settings: Settings) -> ObjectStore:
    """Return the campaigns' store; nothing is sent, written or probed yet.

    Raises:
        CampaignError: The store's URL or the credentials cannot be used.
    """
    if settings.door is not None:
        from tasks.gateway_store import GatewayStore

        return GatewayStore.through(settings.door)
    location = store_location(settings)
    return LocalStore(location) if isinstance(location, Path) else connect(location)


def store_location(settings: Settings) -> Path | S3Location:
    """Return where the store is: a folder, or a bucket with all that is needed to reach it.

    Raises:
        CampaignError: The store's URL or the credentials cannot be used.
    """
    parts = urlsplit(settings.store_url)
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme == "file" and not parts.netloc and parts.path.strip("/") and is_plain:
        return Path(unquote(parts.path))
    if parts.scheme != "s3" or not parts.netloc or not is_plain:
        _refuse(
            "store_url",
            f"begins {parts.scheme or 'without a scheme'!r} and names no store",
            "s3://bucket/prefix or file:///folder, without credentials in it",
        )
    endpoint = settings.s3_endpoint
    if endpoint is not None and urlsplit(endpoint).scheme not in {"http", "https"}:
        _refuse("s3_endpoint", "is no web address", "http://host:port or https://host")
    access_key, secret_key = _credentials(settings)
    return S3Location(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
    )


def _credentials(settings: Settings) -> tuple[str | None, str | None]:
    access_key, secret_key = settings.s3_access_key, settings.s3_secret_key
    if (access_key is None) != (secret_key is None):
        missing = "s3_access_key" if access_key is None else "s3_secret_key"
        _refuse(missing, "is not set", "both keys or neither")
    if settings.s3_credentials_file is not None:
        if access_key is not None:
            _refuse("s3_credentials_file", "is set beside the two keys", "one of the two ways")
        return _read_credentials(settings.s3_credentials_file)
    if access_key is None or secret_key is None:
        return None, None
    return access_key.get_secret_value(), secret_key.get_secret_value()


def _read_credentials(path: Path) -> tuple[str, str]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignError(
            f"{_VARIABLES['s3_credentials_file']} names {path}, which cannot be read "
            f"({type(error).__name__}); expected access key and secret key, a line each"
        ) from error
    if mode & 0o077:
        _refuse(
            "s3_credentials_file", f"names {path} of mode {mode:04o}", f"0600; chmod 600 {path}"
        )
    if len(lines) != 2:  # noqa: PLR2004  access key and secret key
        _refuse(
            "s3_credentials_file",
            f"names {path} with {len(lines)} words",
            "access key and secret key, a line each",
        )
    return lines[0], lines[1]


def _refuse(field: str, found: str, expected: str) -> NoReturn:
    raise CampaignError(f"{_VARIABLES[field]} {found}, expected {expected}")
