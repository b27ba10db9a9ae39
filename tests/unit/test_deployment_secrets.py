import json

import pytest

from flows.deployment_secrets import S3_USERS, write_secrets


def actions_of(folder, name):
    identities = json.loads((folder / "s3.json").read_text())["identities"]
    (found,) = (each for each in identities if each["name"] == name)
    return found["actions"]


def test_every_secret_of_the_compose_file_is_drawn_and_no_two_are_alike(tmp_path):
    folder = tmp_path / "secrets"

    written = write_secrets(folder)

    assert set(written) == {
        *("postgres", "prefect_database", "mlflow_database", "prefect_auth", "s3.json"),
        *(f"s3_{user}" for user in S3_USERS),
    }
    values = [path.read_text() for path in folder.iterdir()]
    assert len(set(values)) == len(values)
    # 240 bits in base 64.
    assert all(len(value) >= 40 for value in values)


def test_only_the_owner_may_enter_the_folder_and_a_container_may_read_a_mounted_file(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)

    write_secrets(folder)

    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}


def test_what_was_drawn_stays_and_the_rights_are_made_again(tmp_path):
    write_secrets(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "s3.json").unlink()
    (tmp_path / "s3_gateway").unlink()

    written = write_secrets(tmp_path)

    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == ["s3.json", "s3_gateway"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"s3.json", "s3_gateway"}


@pytest.mark.parametrize("user", S3_USERS)
def test_key_in_a_users_file_is_the_one_that_the_server_knows(tmp_path, user):
    write_secrets(tmp_path)

    identities = json.loads((tmp_path / "s3.json").read_text())["identities"]

    (own,) = (each for each in identities if each["name"] == user)
    assert own["credentials"] == [
        {"accessKey": f"fedloom-{user}", "secretKey": (tmp_path / f"s3_{user}").read_text()}
    ]


def test_each_user_may_do_what_it_needs_and_no_more(tmp_path):
    write_secrets(tmp_path)

    written = {
        user: {a.partition(":")[2] for a in actions_of(tmp_path, user) if a.startswith("Write")}
        for user in S3_USERS
    }
    read = {a.partition(":")[2] for a in actions_of(tmp_path, "evaluation") if a[:4] == "Read"}
    assert actions_of(tmp_path, "coordinator") == ["Admin"]
    assert written["mlflow"] == {"mlflow"}
    assert written["gateway"] == {
        *("fedloom/campaigns/*/rounds/*/updates/*", "fedloom/witness/*", "fedloom/hellos/*"),
    }
    assert not any("updates" in path or path == "fedloom/campaigns/*" for path in read)
