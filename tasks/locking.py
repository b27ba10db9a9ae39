"""Locking: the names of a campaign are bound to the content they stand for on this machine.

Runs where the base model and the holdout are: on the evaluation worker, in `fedloom check --lock`
and in `fedloom simulate`. The coordinator's own process never loads a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_core.artifacts.content_hash import file_sha256
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import Resolved, lock
from fl_core.errors import CampaignError
from tasks.settings import Folders
from tasks.suite_files import suite_sha256

HOLDOUT_SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Shelves:
    """Where this machine keeps what campaigns name.

    Attributes:
        holdouts: Folder of public holdouts, one file each; None where there is none.
        base_models: Folders of base models by the name that campaigns use.
        suites: Folder of suites beside the built-in ones; None for the built-in ones alone.
    """

    holdouts: Path | None = None
    base_models: Mapping[str, Path] = field(default_factory=dict)
    suites: Path | None = None


def shelves_of(folders: Folders) -> Shelves:
    """Return the shelves in the folders that this process was given."""
    models = folders.models
    found = models.iterdir() if models is not None and models.is_dir() else ()
    return Shelves(
        holdouts=folders.holdouts,
        base_models={path.name: path for path in found},
        suites=folders.suites,
    )


def holdout_path(name: str, shelves: Shelves) -> Path:
    """Return the file of a holdout.

    Raises:
        CampaignError: There is no such file.
    """
    given = Path(name)
    if given.suffix in HOLDOUT_SUFFIXES and given.is_file():
        return given
    folder = shelves.holdouts
    for suffix in HOLDOUT_SUFFIXES if folder is not None else ():
        path = Path(str(folder)) / f"{name}{suffix}"
        if path.is_file():
            return path
    where = folder if folder is not None else "no folder (FEDLOOM_HOLDOUTS is not set)"
    raise CampaignError(
        f"evaluation.holdout {name!r} is not there: looked for "
        f"{', '.join(name + suffix for suffix in HOLDOUT_SUFFIXES)} in {where}",
        hint="put the public rows there, or name another holdout",
    )


def lock_campaign(campaign: Campaign, shelves: Shelves) -> Campaign:
    """Resolve every name of a campaign and return it locked.

    Hashes that the campaign states already are compared, not replaced.

    Raises:
        CampaignError: A name stands for nothing here, or for other content than stated; or a row of
            the holdout cannot be used.
        ModelMismatch: The base model is absent or is not the stated one.
        IncompatibleParts: The parts cannot keep the campaign's promise.
        TrainingError: The base model's rows cannot be clipped apart.
    """
    from fl_core.assembly import assemble, build_parts
    from fl_core.models.loading import adapter_layout, base_sha256, load_base, resolve_base
    from fl_core.privacy.forecast import locked_client_noise, locked_noise
    from fl_core.training.lock_checks import require_clippable

    build_parts(campaign)
    noise_multiplier = locked_noise(campaign)
    client_noise_multiplier = locked_client_noise(campaign)
    holdout = _usable_holdout(campaign, shelves)
    gate = suite_sha256(campaign.gate.name, folder=shelves.suites)
    path = resolve_base(campaign.base_model.name, folders=shelves.base_models)
    base = load_base(path, campaign.task, sha256=campaign.base_model.sha256)
    modules, head_inputs = adapter_layout(base, campaign.adapter.targets, campaign.task)
    locked = lock(
        campaign,
        Resolved(
            base_sha256=campaign.base_model.sha256 or base_sha256(path),
            gate_sha256=_agreed("gate", campaign.gate.sha256, gate),
            holdout_sha256=_agreed(
                "evaluation.holdout", campaign.evaluation.holdout.sha256, file_sha256(holdout)
            ),
            modules=modules,
            head_inputs=head_inputs,
            noise_multiplier=noise_multiplier,
            client_noise_multiplier=client_noise_multiplier,
        ),
    )
    assemble(locked)
    require_clippable(base, locked)
    return locked


def _usable_holdout(campaign: Campaign, shelves: Shelves) -> Path:
    # Its rows are public, so a label that the campaign does not know is told and not left out.
    from fl_core.data.prompts import require_usable
    from tasks.site_rows import read_rows

    path = holdout_path(campaign.evaluation.holdout.name, shelves)
    require_usable(read_rows(path), campaign.task)
    return path


def _agreed(field: str, stated: str | None, found: str) -> str:
    if stated is not None and stated != found:
        raise CampaignError(
            f"{field} has content hash {found[:16]} here, the campaign states {stated[:16]}",
            hint="take the stated content, or leave the hash out and lock again",
        )
    return found
