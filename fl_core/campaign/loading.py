"""A campaign as people write it, TOML or YAML, becomes a Campaign; locking makes it fixed.

Every complaint is one line that names file, field, value and remedy, and comes before anything
runs. PyYAML reads ``1e-5`` as text and ``on`` as true: numbers may come as text, and no field of a
campaign is a boolean, so a boolean is always a mistake.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fl_core.campaign.campaign import Campaign
from fl_core.campaign.complaints import complaint_of
from fl_core.errors import CampaignError

SUFFIXES = (".toml", ".yaml", ".yml")
MAX_TEXT_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names of a campaign stand for on the machine that locks it.

    Attributes:
        base_sha256: Content hash of the base model.
        gate_sha256: Content hash of the suite.
        holdout_sha256: Content hash of the holdout.
        modules: ``(d_out, d_in)`` of every target module.
        head_inputs: Width the head reads; None for a causal LM.
        noise_multiplier: Calibrated or stated noise; None without RecordDp.
        client_noise_multiplier: The same for whole sites; None without ClientDp.
    """

    base_sha256: str
    gate_sha256: str
    holdout_sha256: str
    modules: Mapping[str, tuple[int, int]]
    head_inputs: int | None
    noise_multiplier: float | None
    client_noise_multiplier: float | None = None


def read_campaign(path: Path) -> Campaign:
    """Read a campaign file: TOML, YAML, or a locked ``.json``.

    Raises:
        CampaignError: The file is absent, too large, not parseable, or not a campaign.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CampaignError(
            f"{path}: cannot be read: {error.strerror}",
            hint="`fedloom init` writes a campaign to start from",
        ) from error
    if path.suffix == ".json":
        try:
            return Campaign.model_validate_json(data)
        except ValidationError as error:
            raise CampaignError(
                f"{path}: {complaint_of(error, Campaign, whole='campaign')}"
            ) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CampaignError(f"{path}: is not UTF-8 text") from error
    return parse_campaign(text, source=str(path))


def parse_campaign(text: str, *, source: str) -> Campaign:
    """Read a campaign from the text of a file.

    Args:
        text: TOML, or YAML where it does not parse as TOML; at most 16 kB.
        source: Named in every error.

    Raises:
        CampaignError: With file, field, value and remedy.
    """
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise CampaignError(
            f"{source}: is {len(text.encode())} bytes, a campaign has at most {MAX_TEXT_BYTES}"
        )
    plain = _parse(text, source)
    for field, value in _walk(plain):
        if isinstance(value, bool):
            raise CampaignError(
                f"{source}: {field} is {value}, no field of a campaign is yes or no"
            )
    try:
        return Campaign.model_validate(plain)
    except ValidationError as error:
        raise CampaignError(
            f"{source}: {complaint_of(error, Campaign, whole='campaign')}"
        ) from error


def lock(campaign: Campaign, resolved: Resolved) -> Campaign:
    """Return the campaign with every name bound to its content."""
    privacy = campaign.privacy
    record, client = privacy.record, privacy.client
    changed: dict[str, Any] = {
        "base_model": _bound(campaign.base_model, resolved.base_sha256),
        "gate": _bound(campaign.gate, resolved.gate_sha256),
        "evaluation": campaign.evaluation.model_copy(
            update={"holdout": _bound(campaign.evaluation.holdout, resolved.holdout_sha256)}
        ),
        "adapter": campaign.adapter.model_copy(
            update={"modules": dict(resolved.modules), "head_inputs": resolved.head_inputs}
        ),
    }
    noised: dict[str, Any] = {}
    if record is not None:
        own = {"noise_multiplier": resolved.noise_multiplier}
        noised["record"] = record.model_copy(update=own)
    if client is not None:
        own = {"noise_multiplier": resolved.client_noise_multiplier}
        noised["client"] = client.model_copy(update=own)
    changed["privacy"] = privacy.model_copy(update=noised)
    return Campaign.model_validate(campaign.model_copy(update=changed).model_dump())


def _bound(named: BaseModel, sha256: str) -> BaseModel:
    return named.model_copy(update={"sha256": sha256})


def _parse(text: str, source: str) -> dict[str, Any]:
    is_yaml = source.endswith((".yaml", ".yml"))
    try:
        plain = yaml.safe_load(text) if is_yaml else tomllib.loads(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        # Text without a file's name may be either; JSON is YAML as well.
        plain = None if source.endswith(SUFFIXES) else _mapping_of_yaml(text)
        if plain is None:
            kind = "YAML" if is_yaml else "TOML"
            where = str(error).replace("\n", " ")
            raise CampaignError(f"{source}: is not {kind}: {where}") from error
    if not isinstance(plain, dict):
        raise CampaignError(f"{source}: holds no fields", hint="`fedloom init` writes a campaign")
    return plain


def _mapping_of_yaml(text: str) -> dict[str, Any] | None:
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return plain if isinstance(plain, dict) else None


def _walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{index}]")
    else:
        yield path, value
