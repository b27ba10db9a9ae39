"""The witnesses that a site's policy names, as stores: the campaign's, folders, buckets.

A folder counts only while it holds the mark that was put there when it was prepared. So a volume
that is not mounted is a witness that is away, and never an empty folder on the ledger's own disk
that would agree with everything.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.store import ObjectStore
from fl_core.errors import CampaignError, PolicyRefused, StoreError, StoreUnavailable
from fl_core.privacy.policy_documents import (
    CoordinatorWitness,
    FolderWitness,
    S3Witness,
    SitePolicy,
    Witness,
)
from fl_core.privacy.witness import WitnessedStore
from tasks.settings import Settings, open_store

MARK = ".fedloom-witness"
PREPARE = "run `fedloom site witness` once the disk is mounted"


class MarkedFolder:
    """Write-once objects in a prepared folder; without its mark the folder is away.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._store: LocalStore | None = None

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes; errors as for any store."""
        return self._opened().get(key, max_bytes=max_bytes)

    def put_once(self, key: str, data: bytes) -> bool:
        """Write unless an object exists; say whether this call wrote it."""
        return self._opened().put_once(key, data)

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        return self._opened().list(prefix)

    def discard(self, key: str) -> None:
        """Refuse: a witness forgets nothing.

        Raises:
            StoreUnavailable: Always.
        """
        raise StoreUnavailable(f"{key!r} is a witness' copy in {self._root} and is never removed")

    def prepare(self) -> None:
        """Make the folder and put the mark there, so that it counts from now on.

        Raises:
            StoreUnavailable: It cannot be made or written.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._root / MARK).touch(mode=0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot prepare the witness {self._root}: {error.strerror}",
                hint="check that the disk is mounted and belongs to this user",
            ) from error

    def _opened(self) -> LocalStore:
        if not (self._root / MARK).is_file():
            raise StoreUnavailable(
                f"{self._root} is no prepared witness, or its disk is not mounted", hint=PREPARE
            )
        if self._store is None:
            self._store = LocalStore(self._root)
        return self._store


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy's witnesses are relative to.

    Attributes:
        root: The site's folder.
        campaigns: How the site reaches the campaign's store.
    """

    root: Path
    campaigns: Settings


def open_witnesses(policy: SitePolicy, around: Surroundings) -> tuple[WitnessedStore, ...]:
    """Return the policy's witnesses; nothing is sent or probed yet.

    Raises:
        CampaignError: Credentials or the store's address cannot be used.
    """
    return tuple(
        WitnessedStore(each.text, witness_store(each, around), is_own=is_elsewhere(each, around))
        for each in policy.witnesses
    )


def is_elsewhere(witness: Witness, around: Surroundings) -> bool:
    """Say whether somebody else than the coordinator runs a witness.

    A bucket or folder that is the campaigns' store itself is the coordinator's, whatever the policy
    calls it: it would agree with a rollback that the coordinator wants (SOUNDNESS, rule 14).
    """
    store = urlsplit(around.campaigns.store_url)
    match witness:
        case S3Witness() if store.scheme == "s3":
            own = (witness.endpoint or "").rstrip("/"), witness.bucket
            return own != ((around.campaigns.s3_endpoint or "").rstrip("/"), store.netloc)
        case FolderWitness() if store.scheme == "file":
            folder = Path(unquote(store.path)).resolve()
            return not (around.root / witness.path).resolve().is_relative_to(folder)
        case _:
            return witness.is_own


def witness_store(witness: Witness, around: Surroundings) -> ObjectStore:
    """Return one witness as a store; raises as ``open_witnesses`` does."""
    match witness:
        case CoordinatorWitness():
            return open_store(around.campaigns)
        case FolderWitness():
            return MarkedFolder(around.root / witness.path)
        case S3Witness():
            file = witness.credentials_file
            return open_store(
                Settings(
                    store_url=f"s3://{witness.bucket}/{witness.prefix}",
                    s3_endpoint=witness.endpoint,
                    s3_credentials_file=None if file is None else around.root / file,
                )
            )


def parse_witness(text: str) -> Witness:
    """Return the witness that a command line names.

    Args:
        text: ``coordinator``, ``s3://bucket/prefix``, or the path of a folder.

    Raises:
        CampaignError: It is none of them.
    """
    from pydantic import ValidationError

    if text == "coordinator":
        return CoordinatorWitness()
    if not text.startswith("s3://"):
        return FolderWitness(path=Path(text).absolute())
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    try:
        return S3Witness(bucket=bucket, prefix=prefix.strip("/"))
    except ValidationError as error:
        raise CampaignError(
            f"--witness {text!r} names no bucket, expected s3://bucket/prefix; "
            "endpoint and credentials_file are added in policy.toml"
        ) from error


@dataclass(frozen=True, slots=True)
class WitnessReport:
    """What is known about one witness of a site.

    Attributes:
        name: What people call it.
        is_own: Whether the coordinator does not run it.
        entries: Copies of the site's ledgers that it holds; None where it does not answer.
        complaint: What is wrong with it, or empty.
    """

    name: str
    is_own: bool
    entries: int | None
    complaint: str


def prepare_witnesses(
    policy: SitePolicy, around: Surroundings, *, site: str
) -> list[WitnessReport]:
    """Put the mark into every folder that the policy names, and report on all witnesses."""
    return [_prepared(each, around, site=site) for each in policy.witnesses]


def _prepared(witness: Witness, around: Surroundings, *, site: str) -> WitnessReport:
    is_own = is_elsewhere(witness, around)
    try:
        store = witness_store(witness, around)
        if isinstance(store, MarkedFolder):
            store.prepare()
        found = len(store.list(keys.witnessed_of(site)))
    except (StoreError, CampaignError) as error:
        return WitnessReport(witness.text, is_own, None, str(error))
    return WitnessReport(witness.text, is_own, found, weakness(witness, around))


def weakness(witness: Witness, around: Surroundings) -> str:
    """Return why a witness that answers shows less than it seems to, or nothing."""
    if witness.is_own and not is_elsewhere(witness, around):
        return (
            "is the campaigns' store, which the coordinator runs, so it is no witness of your own"
        )
    if not isinstance(witness, FolderWitness):
        return ""
    is_same_disk = (around.root / witness.path).stat().st_dev == around.root.stat().st_dev
    return (
        "is on the same file system as the ledger, so one snapshot or one broken disk takes both; "
        "use a folder on another disk"
        if is_same_disk
        else ""
    )


def require_unknown(
    policy: SitePolicy, around: Surroundings, *, site: str, is_new_data: bool
) -> None:
    """Refuse a genesis for data that a witness knows already; witnesses that are away are passed.

    Args:
        policy: The new site's policy.
        around: The new site's surroundings.
        site: Its name.
        is_new_data: The operator says that these are other rows than those of the site's earlier
            ledgers.

    Raises:
        PolicyRefused: A witness holds a ledger of this dataset, or one of this site's and
            ``is_new_data`` is off.
    """
    for witness in policy.witnesses:
        try:
            held = witness_store(witness, around).list(keys.witnessed_of(site))
        except (StoreError, CampaignError):
            continue
        known = sorted({name for key in held if (name := keys.witnessed_dataset(key))})
        if policy.dataset in known:
            raise PolicyRefused(
                f"witness {witness.text} holds the ledger of dataset {policy.dataset!r}; a second "
                "genesis would forget what is spent",
                hint="restore the site's folder and run `fedloom ledger recover`",
            )
        if known and not is_new_data:
            raise PolicyRefused(
                f"witness {witness.text} holds ledgers of site {site!r} ({', '.join(known)}); "
                "the same rows keep their ledger",
                hint="restore the site's folder and run `fedloom ledger recover`; for rows that "
                "no ledger was kept for, add --new-rows",
            )
