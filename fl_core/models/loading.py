"""Find a base model, check that it is the frozen one, and load it without training anything of it.

One loader serves an installed package, a local folder and a hub id with a pinned revision, because
a site that resolves a name in another way than the coordinator must still end at the same content
hash or stop. No code of a model or of the package that ships it is run: package files are found
through their metadata, ``trust_remote_code`` is never set, and only safetensors or GGUF weights are
read, never a pickle. GGUF weights are dequantised to float32, so that gradients are exact.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fl_core.artifacts.content_hash import folder_sha256
from fl_core.campaign.specs import TaskSpec
from fl_core.errors import CampaignError, ModelMismatch

# Progress bars of a hundred small tensors are noise in a worker's log.
transformers_logging.disable_progress_bar()
# peft 0.21.2 asks transformers 5.23 for a deprecated attribute at every load of an adapter.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

GGUF = ".gguf"
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory: frozen, in evaluation mode, float32.

    Attributes:
        model: AutoModel for classification, AutoModelForCausalLM for a causal LM.
        tokenizer: Its tokenizer.
        path: Folder, or GGUF file, that it came from.
        hidden_size: Width of the last hidden state.
    """

    model: nn.Module
    tokenizer: Any
    path: Path
    hidden_size: int


def resolve_base(name: str, *, folders: Mapping[str, Path]) -> Path:
    """Return the model folder, or GGUF file, that a base model's name stands for on this machine.

    Looked up in this order: the site's own mapping, an installed distribution, a local path, a hub
    id ``org/name@revision`` (which honours ``HF_HUB_OFFLINE``).

    Args:
        name: As the campaign writes it.
        folders: The site's own places of models, by name.

    Raises:
        ModelMismatch: Nothing is found, or what is found is not one model.
    """
    if name in folders:
        return _require_path(folders[name], f"the configured place of base model {name!r}")
    packaged = _in_package(name)
    if packaged is not None:
        return packaged
    if Path(name).exists():
        return _require_path(Path(name), f"base model {name!r}")
    hub = _HUB.fullmatch(name)
    if hub is not None:
        return _from_hub(hub["repo"], hub["revision"])
    remedy = "install the package, give a folder, or use a hub id with a revision (org/name@commit)"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelMismatch(
            f"base model {name!r} is no folder and, as a hub id, pins no revision; {remedy}"
        )
    raise ModelMismatch(f"base model {name!r} is not found; {remedy}")


def base_sha256(path: Path) -> str:
    """Return the content hash of a base model, which a campaign freezes."""
    return folder_sha256(path)


def load_base(path: Path, task: TaskSpec, *, sha256: str | None) -> LoadedBase:
    """Load a base model for a task.

    Attention runs in transformers' plain implementation: the fused one leaves the mask out when no
    row of the batch is padded, so the kernel that computes one row would follow the other rows
    (SOUNDNESS, rule 1). At short lengths on a CPU it is no slower.

    Args:
        path: From ``resolve_base``.
        task: Decides between encoder and causal LM.
        sha256: Content hash it must have; None only where the hash is being taken.

    Raises:
        ModelMismatch: Another hash, or not a model that transformers can load.
    """
    if sha256 is not None and (found := base_sha256(path)) != sha256:
        raise ModelMismatch(
            f"base model at {path} has hash {found[:16]}, the campaign froze {sha256[:16]}; "
            "install the version that the campaign was locked with"
        )
    auto = AutoModel if task.kind == "classification" else AutoModelForCausalLM
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    folder = path
    if path.suffix == GGUF:
        folder, source["gguf_file"] = path.parent, path.name
    else:
        source["use_safetensors"] = True
    try:
        model = auto.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **source
        )
        source.pop("use_safetensors", None)
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelMismatch(
            f"base model at {path} cannot be loaded for {task.kind}: {type(error).__name__}; "
            "it must be a transformers folder with safetensors weights, or a GGUF file"
        ) from error
    model.eval().requires_grad_(requires_grad=False)
    return LoadedBase(
        model=model, tokenizer=tokenizer, path=path, hidden_size=int(model.config.hidden_size)
    )


def adapter_layout(
    base: LoadedBase, targets: tuple[str, ...], task: TaskSpec
) -> tuple[dict[str, tuple[int, int]], int | None]:
    """Return what locking writes into the adapter: target modules and the head's width.

    Args:
        base: The loaded base model.
        targets: Last parts of module names.
        task: Classification has a head.

    Returns:
        ``(d_out, d_in)`` of every target by full name, and the head's inputs or None.

    Raises:
        CampaignError: A target matches nothing, or a module that is not linear.
    """
    named = dict(base.model.named_modules())
    linear = {name: m for name, m in named.items() if isinstance(m, nn.Linear)}
    known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    modules: dict[str, tuple[int, int]] = {}
    for target in targets:
        matches = [name for name in named if name.rpartition(".")[2] == target]
        if not matches:
            raise CampaignError(
                f"adapter.targets: no module is called {target!r}; linear modules are {known}"
            )
        for name in matches:
            if name not in linear:
                raise CampaignError(
                    f"adapter.targets: module {name!r} is a {type(named[name]).__name__}, only "
                    f"linear modules can be adapted; these are {known}"
                )
            modules[name] = (linear[name].out_features, linear[name].in_features)
    head_inputs = base.hidden_size if task.kind == "classification" else None
    return dict(sorted(modules.items())), head_inputs


def _require_path(path: Path, what: str) -> Path:
    if path.is_file() and path.suffix == GGUF:
        return path
    if path.is_dir() and (path / "config.json").is_file():
        return path
    if path.is_dir() and len(found := sorted(path.glob("*" + GGUF))) == 1:
        return found[0]
    raise ModelMismatch(
        f"{what} is {path}, which is neither a folder with config.json nor one GGUF file; "
        "correct the path"
    )


def _in_package(name: str) -> Path | None:
    if not _DISTRIBUTION.fullmatch(name):
        return None
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    files = [Path(str(package.locate_file(file))) for file in package.files or []]
    weights = {file.parent for file in files if file.suffix == ".safetensors"}
    found = sorted({f.parent for f in files if f.name == "config.json" and f.parent in weights})
    found = found or sorted(file for file in files if file.suffix == GGUF)
    if len(found) != 1:
        raise ModelMismatch(
            f"package {name!r} holds {len(found)} models, expected one; give a folder instead"
        )
    return _require_path(found[0], f"the model of package {name!r}")


def _from_hub(repo: str, revision: str) -> Path:
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelMismatch(
            f"base model {repo}@{revision} is neither in the local hub cache nor reachable "
            f"({type(error).__name__}); download it on a connected machine, or give a folder"
        ) from error
    return _require_path(Path(folder), f"base model {repo}@{revision}")
