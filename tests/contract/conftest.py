"""A real S3 server for the contract tests: SeaweedFS, or the one FEDLOOM_S3_ENDPOINT names."""

import os
import secrets

import pytest

from flows.processes import stop
from flows.servers import start_seaweed
from tasks.object_store import S3Location, connect, ensure_bucket


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """Where the server is, without a bucket: (endpoint, access key, secret key)."""
    own = os.environ.get("FEDLOOM_S3_ENDPOINT")
    if own:
        keys = [os.environ.get(f"FEDLOOM_S3_{half}_KEY") for half in ("ACCESS", "SECRET")]
        yield own, *keys
        return
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    server = start_seaweed(
        tmp_path_factory.mktemp("seaweed"), access_key=access_key, secret_key=secret_key
    )
    yield server.url, access_key, secret_key
    stop(server)


@pytest.fixture(scope="session")
def s3_location(s3_server):
    """A location with a bucket; FEDLOOM_S3_BUCKET names an own one, which only gains objects."""
    endpoint, access_key, secret_key = s3_server
    location = S3Location(
        bucket=os.environ.get("FEDLOOM_S3_BUCKET", "fedloom-contract"),
        prefix=f"contract-{secrets.token_hex(8)}",
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
    )
    ensure_bucket(connect(location))
    return location
