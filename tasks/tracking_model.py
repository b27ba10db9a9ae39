"""One model version per release: the adapter, and a file that attaches it to a base model.

The version is MLflow's "models from code": ``adapter_model.py`` travels as text and runs where
fedloom is not installed. The transformers flavour is not used, because with a base model from a
folder it saves a model that reloads with other weights. The base model is never stored: its hash
is, and the version refuses another one.

Model, files, version and alias are four calls, any of which may be the last before a crash. Each
is looked up before it is made; files may be written again, over files that say the same.
"""

import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from fl_core.artifacts.content_hash import files_sha256
from fl_core.artifacts.documents import sha256_hex
from fl_core.campaign.campaign import Campaign
from fl_core.errors import ObjectCorrupt, StoreError
from tasks.tracking_client import KEY_TAG, STATEMENT_PAGE, artifact_url, keep_one
from tasks.tracking_facts import RoundLog, summary, version_tags

MODEL_CODE = Path(__file__).with_name("adapter_model.py")
CANDIDATE = "candidate"
_RUNTIME = ("mlflow", "torch", "transformers", "peft", "safetensors", "pandas")


def ensure_version(client: Any, log: RoundLog, *, experiment_id: str, run_id: str) -> Any:
    """Return the model version of a released round, made from its adapter's files if need be.

    Raises:
        ObjectCorrupt: The files are not the adapter that the outcome names.
    """
    name = log.campaign.model_name
    _ensure_registered_model(client, name)
    found = _version_of(client, name, log.key)
    if found is not None:
        return found
    model_id = _ensure_model(client, log, experiment_id=experiment_id, run_id=run_id)
    client.create_model_version(
        name,
        f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        tags={
            **version_tags(log, parent_version=_parent_version(client, log)),
            KEY_TAG: log.key,
        },
        description=_description(client, log, experiment_id=experiment_id, run_id=run_id),
        await_creation_for=0,  # the files are there already, so it is ready when it is made
    )
    return _version_of(client, name, log.key)


def _description(client: Any, log: RoundLog, *, experiment_id: str, run_id: str) -> str:
    if log.statement_html is None:
        return summary(log)
    url = artifact_url(client.tracking_uri, experiment_id, run_id=run_id, path=STATEMENT_PAGE)
    return f"{summary(log)}. **[Privacy statement]({url})**"


def point_candidate(client: Any, name: str, newest: Any) -> None:
    """Set the alias ``candidate`` to a version, unless it points to one of a later round.

    A round may be logged after its successors, when MLflow was away; the alias never goes back.
    """
    current = client.get_registered_model(name).aliases.get(CANDIDATE)
    if current == newest.version:
        return
    if current is not None:
        closed = client.get_model_version(name, current).tags.get("closed", "")
        if closed > newest.tags["closed"]:
            return
    client.set_registered_model_alias(name, CANDIDATE, newest.version)


def logged_model_id(model_version: Any) -> str:
    """Return the id of the logged model behind a version.

    mlflow 3.17: ``model_id`` of a version read back from the server is None.
    """
    return str(model_version.source).removeprefix("models:/")


def _ensure_registered_model(client: Any, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(
            name, description="One version per released round; each is an adapter for a base model."
        )


def _version_of(client: Any, name: str, key: str) -> Any | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
    return keep_one(
        found,
        order=lambda v: int(v.version),
        drop=lambda v: client.delete_model_version(name, v.version),
    )


def _parent_version(client: Any, log: RoundLog) -> str | None:
    name, base = log.campaign.model_name, log.outcome.base_hash
    found = client.search_model_versions(f"name = '{name}' and tags.adapter_sha256 = '{base}'")
    newest = max(found, key=lambda v: int(v.version), default=None)
    return None if newest is None else str(newest.version)


def _ensure_model(client: Any, log: RoundLog, *, experiment_id: str, run_id: str) -> str:
    def find() -> Any | None:
        found = client.search_logged_models([experiment_id], f"tags.`{KEY_TAG}` = '{log.key}'")
        return keep_one(
            found,
            order=lambda model: model.model_id,
            drop=lambda model: client.delete_logged_model(model.model_id),
        )

    model = find()
    if model is None:
        client.create_logged_model(
            experiment_id,
            name=f"{log.campaign.id}-r{log.outcome.round:03d}",
            source_run_id=run_id,
            tags={KEY_TAG: log.key},
            model_type="adapter",
        )
        model = find()
    model_id = str(model.model_id) if model is not None else ""
    _write_files(client, log, model_id=model_id, run_id=run_id)
    return model_id


def _write_files(client: Any, log: RoundLog, *, model_id: str, run_id: str) -> None:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with tempfile.TemporaryDirectory(prefix="fedloom-model-") as scratch:
        folder = _save_model(log, Path(scratch), model_id=model_id, run_id=run_id)
        client.log_model_artifacts(model_id, str(folder))
    # mlflow 3.17: a second log_outputs of one model breaks a unique key of the database.
    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=log.outcome.round)])
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def _save_model(log: RoundLog, scratch: Path, *, model_id: str, run_id: str) -> Path:
    import mlflow.pyfunc
    from mlflow.models import Model

    _write_adapter(log, scratch / "adapter")
    folder = scratch / "model"
    base = log.campaign.base_model
    with warnings.catch_warnings():
        # An input example would be run at once, which needs the base model and torch.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(MODEL_CODE),
            artifacts={"adapter": str(scratch / "adapter")},
            signature=_signature(log.campaign),
            # Given, because MLflow would otherwise load the model, and with it torch, to find them.
            pip_requirements=[_pinned(name) for name in _runtime(log.campaign)],
            model_config={"base": base.name, "base_sha256": base.sha256},
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        )
    return folder


def _write_adapter(log: RoundLog, folder: Path) -> None:
    files = log.adapter_files or {}
    found = files_sha256({name: sha256_hex(data) for name, data in files.items()})
    if found != log.outcome.result_hash:
        raise ObjectCorrupt(
            f"adapter files of {log.key} hash to {found}, outcome says {log.outcome.result_hash}; "
            f"read them again from {log.adapter_uri}"
        )
    folder.mkdir()
    for name, data in files.items():
        if Path(name).name != name:
            raise ObjectCorrupt(f"adapter file {name!r} is not a plain file name")
        (folder / name).write_bytes(data)


def _signature(campaign: Campaign) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    texts = Schema([ColSpec(DataType.string)])
    if campaign.task.kind == "causal_lm":
        length = ParamSchema([ParamSpec("max_new_tokens", DataType.integer, 64)])
        return ModelSignature(inputs=texts, outputs=texts, params=length)
    scores = Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "score"),
            ColSpec(Map(DataType.double), "scores"),
        ]
    )
    return ModelSignature(inputs=texts, outputs=scores)


def _runtime(campaign: Campaign) -> tuple[str, ...]:
    return (*_RUNTIME, "gguf") if campaign.task.kind == "causal_lm" else _RUNTIME


def _pinned(package: str) -> str:
    """Return the installed version, or what fedloom asks for where the package is absent.

    A coordinator has no torch. A local part (``+cpu``) is cut: no public index holds it.
    """
    try:
        return f"{package}=={version(package).split('+')[0]}"
    except PackageNotFoundError:
        for line in requires("fedloom") or ():
            wanted = line.split(";")[0].strip()
            if wanted.startswith(package) and not wanted[len(package)].isalnum():
                return wanted
        raise StoreError(f"fedloom states no version of {package}") from None
