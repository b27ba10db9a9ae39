"""Settings from the environment, and one clear error where they cannot be used."""

from pathlib import Path

import pytest

from fl_core.artifacts.local import LocalStore
from fl_core.errors import CampaignError
from tasks.object_store import S3Location, S3Store
from tasks.settings import Folders, open_store, read_folders, read_settings, store_location

S3 = {
    "FEDLOOM_STORE": "s3://bucket/some/prefix/",
    "FEDLOOM_S3_ENDPOINT": "http://127.0.0.1:9000",
    "FEDLOOM_S3_ACCESS_KEY": "access",
    "FEDLOOM_S3_SECRET_KEY": "hidden-secret",
}


def test_everything_that_is_set_is_read():
    settings = read_settings(
        S3
        | {
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
            "HOME": "/nobody",
        }
    )

    assert settings.store_url == S3["FEDLOOM_STORE"]
    assert settings.mlflow_uri == "http://127.0.0.1:5000"
    assert store_location(settings) == S3Location(
        bucket="bucket",
        prefix="some/prefix",
        endpoint="http://127.0.0.1:9000",
        access_key="access",
        secret_key="hidden-secret",
    )


def test_secret_is_never_shown():
    settings = read_settings(S3)

    shown = f"{settings!r} {settings} {settings.model_dump_json()} {store_location(settings)!r}"

    assert "hidden-secret" not in shown


def test_what_is_not_set_is_none_and_an_empty_variable_counts_as_not_set():
    settings = read_settings({"FEDLOOM_STORE": "s3://bucket", "MLFLOW_TRACKING_URI": ""})

    assert settings.mlflow_uri is None
    assert store_location(settings) == S3Location(bucket="bucket")


def test_folders_are_read_without_a_store():
    folders = read_folders({"FEDLOOM_HOLDOUTS": "/data/holdouts", "FEDLOOM_MODELS": ""})

    assert folders == Folders(holdouts=Path("/data/holdouts"))


def test_folder_store_opens_and_writes(tmp_path):
    settings = read_settings({"FEDLOOM_STORE": (tmp_path / "with blank").as_uri()})

    store = open_store(settings)
    store.put_once("a", b"x")

    assert isinstance(store, LocalStore)
    assert (tmp_path / "with blank" / "a").read_bytes() == b"x"


def test_bucket_store_opens_without_asking_the_server():
    assert isinstance(open_store(read_settings(S3)), S3Store)


def test_one_process_keeps_one_client_per_location():
    first, second = (open_store(read_settings(S3)) for _ in range(2))
    other = open_store(read_settings(S3 | {"FEDLOOM_S3_SECRET_KEY": "rotated"}))

    assert first.client is second.client
    assert other.client is not first.client


def _credentials(path: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    path.write_text(text)
    path.chmod(mode)
    return {"FEDLOOM_STORE": "s3://bucket", "FEDLOOM_S3_CREDENTIALS_FILE": str(path)}


def test_credentials_come_from_a_file_of_two_lines(tmp_path):
    environ = _credentials(tmp_path / "s3.credentials", "access\nhidden-secret\n")

    location = store_location(read_settings(environ))

    assert (location.access_key, location.secret_key) == ("access", "hidden-secret")


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("access\nhidden-secret\n", 0o644, "of mode 0644, expected 0600"),
        ("hidden-secret\n", 0o600, "with 1 words, expected access key and secret key"),
        ("a\nb\nhidden-secret", 0o600, "with 3 words"),
    ],
    ids=["readable by others", "one line", "three lines"],
)
def test_unusable_credentials_file_is_refused_without_showing_it(tmp_path, text, mode, message):
    environ = _credentials(tmp_path / "s3.credentials", text, mode)

    with pytest.raises(CampaignError, match=message) as caught:
        read_settings(environ)

    assert "FEDLOOM_S3_CREDENTIALS_FILE" in str(caught.value)
    assert "hidden-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "variable", "message"),
    [
        ({}, "FEDLOOM_STORE", "is not set, expected s3://bucket/prefix or file:///folder"),
        ({"FEDLOOM_STORE": "bucket"}, "FEDLOOM_STORE", "without a scheme"),
        ({"FEDLOOM_STORE": "http://host/b"}, "FEDLOOM_STORE", "begins 'http'"),
        ({"FEDLOOM_STORE": "s3://"}, "FEDLOOM_STORE", "names no store"),
        ({"FEDLOOM_STORE": "file://folder"}, "FEDLOOM_STORE", "names no store"),
        ({"FEDLOOM_STORE": "file:///"}, "FEDLOOM_STORE", "names no store"),
        ({"FEDLOOM_STORE": "s3://k:hidden-secret@b"}, "FEDLOOM_STORE", "without credentials"),
        (S3 | {"FEDLOOM_S3_ENDPOINT": "host:9000"}, "FEDLOOM_S3_ENDPOINT", "no web address"),
        (S3 | {"FEDLOOM_S3_SECRET_KEY": ""}, "FEDLOOM_S3_SECRET_KEY", "both keys or neither"),
        (S3 | {"FEDLOOM_S3_ACCESS_KEY": ""}, "FEDLOOM_S3_ACCESS_KEY", "both keys or neither"),
        (
            S3 | {"FEDLOOM_S3_CREDENTIALS_FILE": "/x"},
            "FEDLOOM_S3_CREDENTIALS_FILE",
            "one of the two ways",
        ),
        (
            {"FEDLOOM_STORE": "s3://b", "FEDLOOM_S3_CREDENTIALS_FILE": "/absent/file"},
            "FEDLOOM_S3_CREDENTIALS_FILE",
            "cannot be read",
        ),
    ],
)
def test_setting_that_cannot_be_used_is_named(environ, variable, message):
    with pytest.raises(CampaignError, match=message) as caught:
        read_settings(environ)

    assert str(caught.value).startswith(variable)
    assert "hidden-secret" not in str(caught.value)
