"""The store in an S3-compatible server: the only module that talks to S3.

An object is written with ``If-None-Match: *``, so of two writers the server lets one win. Servers
exist that ignore the header and overwrite (rclone and s3rver did when they were measured);
``require_write_once`` finds out before anything depends on it. The SHA-256 of every object travels
with it, as the checksum that S3 verifies on arrival and as metadata, and is compared again on
every read.

boto3's clients may be shared by threads; making one is slow, so a process keeps one per location.
"""

import base64
import contextlib
import functools
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    NoCredentialsError,
    ParamValidationError,
)

from fl_core.artifacts.store import ObjectStore, require_key, require_length, require_prefix
from fl_core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable

PROBE_KEY = "probes/write-once"
_METADATA = "sha256"
_REGION = "us-east-1"
# 409 means that another write of the same key is under way: its end decides, so ask again
_CONFLICT_PAUSES_S = (0.1, 0.3, 1.0, 3.0)
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "Forbidden"}
_MISSING = {"NoSuchKey", "404"}


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and how to reach it.

    Attributes:
        bucket: Name of the bucket.
        prefix: Folder inside it, without slashes at its ends; empty for the whole bucket.
        endpoint: Base URL of the server; None is AWS.
        access_key: None together with ``secret_key`` leaves both to boto3's own chain.
        secret_key: Never shown.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)


class S3Store:
    """Write-once objects in a bucket; safe to share between threads.

    Args:
        client: boto3's S3 client.
        bucket: Name of the bucket.
        prefix: Folder inside it; empty for the whole bucket.
    """

    def __init__(self, client: Any, *, bucket: str, prefix: str = "") -> None:
        self.client = client
        self.bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Return the object's bytes, compared with the SHA-256 they were written with.

        Raises:
            ObjectMissing: No object under ``key``.
            ObjectCorrupt: Other bytes than were written, more than ``max_bytes``, or the server
                lost their checksum.
            StoreUnavailable: No answer, wrong credentials, no bucket.
        """
        with self._reporting("read", key):
            try:
                answer = self.client.get_object(
                    Bucket=self.bucket, Key=self._name(key), ChecksumMode="ENABLED"
                )
                with contextlib.closing(answer["Body"]) as body:
                    require_length(key, answer.get("ContentLength", 0), max_bytes)
                    data: bytes = body.read()
            except FlexibleChecksumError as error:
                raise ObjectCorrupt(f"object {key!r} does not match its checksum") from error
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise ObjectMissing(f"no object under {key!r} in {self.bucket!r}") from error
                raise
        self._require_checksum(key, data, answer)
        return data

    def size(self, key: str) -> int:
        """Return the object's length in bytes.

        Raises:
            ObjectMissing: No object under ``key``.
            StoreUnavailable: No answer, wrong credentials, no bucket.
        """
        with self._reporting("read", key):
            try:
                answer = self.client.head_object(Bucket=self.bucket, Key=self._name(key))
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise ObjectMissing(f"no object under {key!r} in {self.bucket!r}") from error
                raise
        return int(answer["ContentLength"])

    def put_once(self, key: str, data: bytes) -> bool:
        """Write the object unless one exists.

        boto3 repeats a request whose answer got lost. So False can mean that an earlier try of
        this very call wrote the object; as with every False, go on from what is stored.

        Raises:
            StoreUnavailable: No answer, wrong credentials, no bucket, no conditional writes.
        """
        pauses_s = iter(_CONFLICT_PAUSES_S)
        with self._reporting("write", key):
            while True:
                try:
                    self._put(key, data)
                except ClientError as error:
                    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                    if status == HTTPStatus.PRECONDITION_FAILED:
                        return False
                    pause_s = next(pauses_s, None)
                    if status != HTTPStatus.CONFLICT or pause_s is None:
                        raise
                    time.sleep(pause_s)
                else:
                    return True

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted.

        Raises:
            StoreUnavailable: No answer, wrong credentials, no bucket.
        """
        pages = self.client.get_paginator("list_objects_v2")
        with self._reporting("list", prefix):
            found = [
                entry["Key"]
                for page in pages.paginate(
                    Bucket=self.bucket, Prefix=self._prefix + require_prefix(prefix)
                )
                for entry in page.get("Contents", [])
            ]
        return sorted(name.removeprefix(self._prefix) for name in found)

    def discard(self, key: str) -> None:
        """Remove an object; absent already is as good.

        In a bucket with versions the server keeps the old one, which whoever may read versions can
        still read: leave them off where raw updates pass through.

        Raises:
            StoreUnavailable: No answer, or these credentials may not remove objects.
        """
        with self._reporting("remove", key):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def _put(self, key: str, data: bytes) -> None:
        digest = hashlib.sha256(data)
        self.client.put_object(
            Bucket=self.bucket,
            Key=self._name(key),
            Body=data,
            IfNoneMatch="*",
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            Metadata={_METADATA: digest.hexdigest()},
        )

    def _name(self, key: str) -> str:
        return self._prefix + require_key(key)

    def _require_checksum(self, key: str, data: bytes, answer: dict[str, Any]) -> None:
        digest = hashlib.sha256(data)
        stated = {
            base64.b64encode(digest.digest()).decode(): answer.get("ChecksumSHA256"),
            digest.hexdigest(): answer.get("Metadata", {}).get(_METADATA),
        }
        if not any(stated.values()):
            raise ObjectCorrupt(
                f"object {key!r} has lost its sha-256; the server, or whoever copied the bucket, "
                f"must keep checksums or user metadata"
            )
        if any(written not in {None, found} for found, written in stated.items()):
            raise ObjectCorrupt(f"object {key!r} has another sha-256 than it was written with")

    @contextlib.contextmanager
    def _reporting(self, action: str, key: str) -> Iterator[None]:
        where = f"cannot {action} {key!r} in bucket {self.bucket!r}"
        at = self.client.meta.endpoint_url
        try:
            yield
        except ClientError as error:
            raise StoreUnavailable(f"{where} at {at}: {_code(error)}", hint=_hint(error)) from error
        except BotoCoreError as error:
            raise StoreUnavailable(
                f"{where} at {at}: {type(error).__name__}", hint=_hint_without_answer(error)
            ) from error


def connect(location: S3Location) -> S3Store:
    """Return the store at a location; nothing is sent yet.

    Raises:
        StoreUnavailable: The address is no URL, or boto3's own configuration is broken.
    """
    client = _client(os.getpid(), location)
    return S3Store(client, bucket=location.bucket, prefix=location.prefix)


def ensure_bucket(store: S3Store) -> None:
    """Make the store's bucket unless it is there.

    Raises:
        StoreUnavailable: No answer, or these credentials may not make a bucket.
    """
    with store._reporting("make", "the bucket itself"):  # noqa: SLF001  same module
        try:
            store.client.head_bucket(Bucket=store.bucket)
        except ClientError as error:
            if _code(error) not in {"NoSuchBucket", "404"}:
                raise
            with contextlib.suppress(store.client.exceptions.BucketAlreadyOwnedByYou):
                store.client.create_bucket(Bucket=store.bucket)


def require_write_once(store: ObjectStore) -> None:
    """Refuse a store that replaces objects.

    Two writes to one probe key, which stays: the second must be refused, and the first one's bytes
    must still be there. Servers that ignore ``If-None-Match`` do neither.

    Raises:
        StoreUnavailable: The store overwrote the probe, or does not answer.
    """
    store.put_once(PROBE_KEY, b"written once")
    second = secrets.token_bytes(16)
    if store.put_once(PROBE_KEY, second) or store.get(PROBE_KEY) == second:
        raise StoreUnavailable(
            f"the store replaced {PROBE_KEY!r} though the write said if-none-match: *, expected "
            f"it to refuse; rounds and ledgers need a server with conditional writes",
            hint="use AWS S3, SeaweedFS 4.48 or another server that passes "
            "tests/contract/test_object_store.py with FEDLOOM_S3_ENDPOINT set",
        )


@functools.lru_cache(maxsize=32)
def _client(process: int, location: S3Location) -> Any:  # noqa: ARG001  a fork must not share sockets
    try:
        session = boto3.session.Session()
        return session.client(
            "s3",
            endpoint_url=location.endpoint,
            aws_access_key_id=location.access_key,
            aws_secret_access_key=location.secret_key,
            region_name=session.region_name or _REGION,
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 4},
                max_pool_connections=16,
                s3={"addressing_style": "path"},
            ),
        )
    except ValueError as error:
        raise StoreUnavailable(
            f"the store's address {location.endpoint!r} is no URL; use http://host:port"
        ) from error
    except BotoCoreError as error:
        raise StoreUnavailable(
            f"boto3 cannot be set up for bucket {location.bucket!r}: {error}",
            hint="check AWS_PROFILE and boto3's own configuration files",
        ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _hint_without_answer(error: BotoCoreError) -> str:
    if isinstance(error, NoCredentialsError):
        return "set FEDLOOM_S3_ACCESS_KEY and FEDLOOM_S3_SECRET_KEY, or a profile of boto3"
    if isinstance(error, ParamValidationError):
        return "correct the bucket's name in FEDLOOM_STORE"
    return "the server does not answer: check its address and that it runs"


def _hint(error: ClientError) -> str:
    code = _code(error)
    if code in _REFUSED:
        return "check access key, secret key, and what they may do in this bucket"
    if code in {"NoSuchBucket", "404"}:
        return "make the bucket, or correct its name in FEDLOOM_STORE"
    if code == "NotImplemented":
        return "this server has no conditional writes; use one that has"
    return "check the server's log, then try again"
