"""A home of an earlier fedloom: its stack file keeps what sites know, and forgets their keys."""

import json

import pytest

from flows.home_upgrade import upgrade_stack_file
from flows.local_stack import connect
from flows.stack_file import (
    Stated,
    is_first_format,
    prepared_stack_file,
    read_stack_file,
    stack_path,
)


def first_format(file, *, evaluation=True) -> dict[str, object]:
    """Return what fedloom wrote before there was a gateway."""
    plain = file.model_dump(mode="json")
    for name in ("gateway", "gateway_port", "gateway_listen", "gateway_hosts"):
        del plain[name]
    if not evaluation:
        del plain["evaluation"]
    keys = {"access_key": "A", "secret_key": "of-north"}
    return plain | {"version": 1, "sites": {"north": keys}}


@pytest.mark.parametrize("evaluation", [True, False])
def test_ports_and_keys_stay_and_the_sites_keys_go(tmp_path, evaluation):
    before = prepared_stack_file(tmp_path, Stated())
    plain = first_format(before, evaluation=evaluation)
    stack_path(tmp_path).write_text(json.dumps(plain))
    assert is_first_format(tmp_path)
    assert connect(tmp_path) is None

    upgrade_stack_file(tmp_path)

    after = read_stack_file(tmp_path)
    assert not is_first_format(tmp_path)
    assert (after.prefect_port, after.mlflow_port) == (before.prefect_port, before.mlflow_port)
    assert (after.s3_ports, after.coordinator) == (before.s3_ports, before.coordinator)
    assert (after.evaluation == before.evaluation) is evaluation
    assert after.gateway.secret_key not in {before.gateway.secret_key, "of-north"}
    assert "of-north" not in stack_path(tmp_path).read_text()
    assert stack_path(tmp_path).stat().st_mode & 0o777 == 0o600


def test_file_of_the_present_format_is_left_alone(tmp_path):
    upgrade_stack_file(tmp_path)
    assert not stack_path(tmp_path).exists()
    stack_path(tmp_path).write_text(prepared_stack_file(tmp_path, Stated()).model_dump_json())
    before = stack_path(tmp_path).read_bytes()

    upgrade_stack_file(tmp_path)

    assert stack_path(tmp_path).read_bytes() == before
