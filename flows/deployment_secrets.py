"""The secrets of a deployment by compose or Kubernetes: drawn here, one file each.

Passwords of the databases and of Prefect's API, the keys of the store, and the S3 server's own file
of who may do what. That file is made again at every call from the rights that this version states,
so an upgrade that takes or gives rights reaches a running deployment; what was drawn before stays.

The files are readable by everybody *inside* a folder that only its owner may enter. A file that is
mounted into a container keeps its owner and mode, and the user in there is another one.
"""

import json
import secrets
from pathlib import Path

from fl_core.artifacts.replacing import replace_file
from flows.servers import S3Identity
from flows.stack_file import MLFLOW_BUCKET, S3Keys, evaluation_identity, gateway_identity

S3_USERS = ("coordinator", "gateway", "evaluation", "mlflow")
"""Who has keys for the store; the id of each key is ``fedloom-<name>``."""

S3_CONFIG = "s3.json"
_PASSWORDS = ("postgres", "prefect_database", "mlflow_database")
_PREFECT_AUTH = "prefect_auth"


def write_secrets(folder: Path) -> list[str]:
    """Write every secret that is not there yet, and the S3 server's file in any case.

    Args:
        folder: Made when absent; afterwards only its owner may enter it.

    Returns:
        Names of the files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    drawn = {name: secrets.token_urlsafe(30) for name in _PASSWORDS}
    # Prefect takes a user and a password in one.
    drawn[_PREFECT_AUTH] = f"fedloom:{secrets.token_urlsafe(30)}"
    drawn |= {f"s3_{user}": secrets.token_urlsafe(30) for user in S3_USERS}
    written = [name for name, value in drawn.items() if _write_once(folder / name, value)]
    _replace(folder / S3_CONFIG, json.dumps({"identities": _identities(folder)}, indent=1))
    return sorted([*written, S3_CONFIG])


def _identities(folder: Path) -> list[dict[str, object]]:
    pairs = {
        user: S3Keys(
            access_key=f"fedloom-{user}",
            secret_key=(folder / f"s3_{user}").read_text(encoding="utf-8").strip(),
        )
        for user in S3_USERS
    }
    everything, own = pairs["coordinator"], pairs["mlflow"]
    stated = (
        S3Identity("coordinator", everything.access_key, everything.secret_key),
        gateway_identity(pairs["gateway"]),
        evaluation_identity(pairs["evaluation"]),
        S3Identity(
            "mlflow",
            own.access_key,
            own.secret_key,
            tuple(f"{action}:{MLFLOW_BUCKET}" for action in ("Read", "Write", "List")),
        ),
    )
    return [identity.as_json() for identity in stated]


def _write_once(path: Path, value: str) -> bool:
    if path.exists():
        return False
    _replace(path, value)
    return True


def _replace(path: Path, value: str) -> None:
    replace_file(path, value.encode(), mode=0o444)
    # Whatever the umask: the user in the container is another one.
    path.chmod(0o444)
