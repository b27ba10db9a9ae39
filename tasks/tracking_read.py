"""What MLflow holds of a model version: whose release it is, and the statement logged with it.

Only read, and nothing of it is believed: ``fedloom statement --verify`` holds it against the store.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import CampaignError
from tasks.tracking_client import KEY_TAG, connect, mlflow_border

_SHOWN = 10
_KEY = re.compile(r"([a-z0-9-]+)/r([1-9][0-9]{0,3})")
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class LoggedVersion:
    """A model version as MLflow has it.

    Attributes:
        campaign_id: Campaign that it says it is of.
        round: Round that it says released it.
        run_id: Run that it was logged with.
        adapter_sha256: Adapter that it says it is; empty if it says none.
        statement: Bytes of ``statement.json``; None if it is not there.
        markdown: Text of ``statement.md``; None if it is not there.
        html: Text of ``statement.html``; None if it is not there.
    """

    campaign_id: str
    round: int
    run_id: str
    adapter_sha256: str
    statement: bytes | None
    markdown: str | None
    html: str | None


def read_version(model: str, version: str, *, tracking_uri: str | None = None) -> LoggedVersion:
    """Return a version of a registered model; ``version`` is a number, or an alias.

    Raises:
        CampaignError: There is no such version, or fedloom did not log it.
        StoreUnavailable: The server does not answer.
        StoreError: The server refuses what was asked, or there is no address.
    """
    client = connect(tracking_uri)
    with mlflow_border(f"read version {version} of {model}"):
        found = _find(client, model, version)
        key = None if found is None else _KEY.fullmatch(found.tags.get(KEY_TAG, ""))
        if found is None or key is None:
            raise CampaignError(
                f"model {model!r} has no version {version!r} that fedloom logged; "
                f"{_there(client, model)}",
                hint="`fedloom statement --campaign ID --round N` needs no model version",
            )
        files = _files(client, found.run_id)
    page, text = files.get("statement.html"), files.get("statement.md")
    return LoggedVersion(
        campaign_id=key[1],
        round=int(key[2]),
        run_id=str(found.run_id),
        adapter_sha256=found.tags.get("adapter_sha256", ""),
        statement=files.get("statement.json"),
        markdown=None if text is None else text.decode("utf-8", "replace"),
        html=None if page is None else page.decode("utf-8", "replace"),
    )


def _find(client: Any, model: str, version: str) -> Any | None:
    if not version.isdigit():
        aliases = {
            alias: number
            for found in client.search_registered_models(f"name = '{_quoted(model)}'")
            for alias, number in found.aliases.items()
        }
        version = str(aliases.get(version.removeprefix("@"), ""))
    found = client.search_model_versions(f"name = '{_quoted(model)}'")
    return next((each for each in found if str(each.version) == version), None)


def _there(client: Any, model: str) -> str:
    """What a person may have meant: the versions of the model, or the models."""
    versions = client.search_model_versions(f"name = '{_quoted(model)}'")
    if versions:
        numbers = sorted(int(each.version) for each in versions)
        aliases = client.get_registered_model(model).aliases
        named = "".join(f", {alias} is {number}" for alias, number in sorted(aliases.items()))
        return f"its versions are {numbers[0]} to {numbers[-1]}{named}"
    names = ", ".join(sorted(found.name for found in client.search_registered_models())[:_SHOWN])
    return f"models are {names}" if names else "no model is registered"


def _quoted(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._ -]{1,200}", name):
        raise CampaignError(f"{name[:80]!r} is no name of a model that fedloom logs")
    return name


def _files(client: Any, run_id: str) -> dict[str, bytes]:
    wanted = {"statement.json", "statement.md", "statement.html"}
    there = [f.path for f in client.list_artifacts(run_id) if f.path in wanted]
    sizes = {f.path: f.file_size or 0 for f in client.list_artifacts(run_id)}
    found = {}
    with tempfile.TemporaryDirectory(prefix="fedloom-statement-") as scratch:
        for name in there:
            if sizes[name] <= _MAX_BYTES:
                local = client.download_artifacts(run_id, name, scratch)
                found[name] = Path(local).read_bytes()
    return found
