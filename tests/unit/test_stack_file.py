"""What a home remembers: stable ports, private keys, narrow rights."""

import socket
import stat
from dataclasses import fields
from pathlib import Path

import pytest

from fl_core.errors import ObjectCorrupt
from flows.processes import ServerProcess
from flows.servers import SeaweedPorts
from flows.stack_file import (
    S3Keys,
    Stated,
    evaluation_identity,
    forget_process,
    gateway_identity,
    prepared_stack_file,
    read_stack_file,
    record_process,
    recorded_processes,
    stack_path,
    write_stack_file,
)


def prepare(home: Path, **stated: object):
    return write_stack_file(home, prepared_stack_file(home, Stated(**stated)))


def test_ports_and_keys_stay_between_two_starts(tmp_path):
    first = prepare(tmp_path)

    second = prepare(tmp_path)

    assert second == first


def test_all_ports_of_a_new_home_are_distinct(tmp_path):
    file = prepare(tmp_path)

    ports = [file.prefect_port, file.mlflow_port, file.gateway_port, *file.s3_ports.values()]

    assert len(set(ports)) == 3 + len(fields(SeaweedPorts))


def test_stated_port_is_kept_from_then_on(tmp_path):
    prepare(tmp_path, prefect_port=4242, gateway_hosts=("fedloom.example.org",))

    later = prepare(tmp_path)

    assert (later.prefect_port, later.gateway_hosts) == (4242, ("fedloom.example.org",))


def test_taken_inner_port_is_drawn_again_and_the_known_ones_stay(tmp_path):
    before = prepare(tmp_path)
    with socket.socket() as filer, socket.socket() as s3:
        filer.bind(("127.0.0.1", before.s3_ports["filer"]))
        s3.bind(("127.0.0.1", before.s3_ports["s3"]))

        after = prepare(tmp_path)

    changed = {name for name, port in after.s3_ports.items() if before.s3_ports[name] != port}
    assert changed == {"filer"}


def test_stack_file_is_private(tmp_path):
    prepare(tmp_path)

    assert stat.S_IMODE(stack_path(tmp_path).stat().st_mode) == 0o600


def test_secrets_are_not_in_the_text_form(tmp_path):
    file = prepare(tmp_path)

    assert file.gateway.secret_key not in repr(file)


def test_home_without_a_stack_has_no_file(tmp_path):
    assert read_stack_file(tmp_path) is None


@pytest.mark.parametrize("text", ['{"version": 2}', "[]", "not json"])
def test_unreadable_stack_file_is_named(tmp_path, text):
    stack_path(tmp_path).write_text(text)

    with pytest.raises(ObjectCorrupt, match=r"stack\.json"):
        read_stack_file(tmp_path)


def test_process_record_comes_back_whole_and_goes_when_forgotten(tmp_path):
    server = ServerProcess("site north", 7, "", tmp_path / "log", 11, "token", 2, 3.0)
    record_process(tmp_path, server)

    assert recorded_processes(tmp_path) == {"site north": server}

    forget_process(tmp_path, server)
    assert recorded_processes(tmp_path) == {}


def test_gateway_writes_what_sites_may_write_and_nothing_else():
    identity = gateway_identity(S3Keys.draw())

    writes = [action for action in identity.actions if action.startswith(("Write", "Admin"))]

    assert writes == [
        "Write:fedloom/campaigns/*/rounds/*/updates/*",
        "Write:fedloom/witness/*",
        "Write:fedloom/hellos/*",
    ]


def test_evaluation_worker_reads_no_sites_update_and_writes_results_only():
    actions = evaluation_identity(S3Keys.draw()).actions

    assert not any("updates" in action or action == "Admin" for action in actions)
    assert not any(action in {"Read:fedloom", "Read:fedloom/*"} for action in actions)
    assert [action for action in actions if action.startswith("Write")] == [
        "Write:fedloom/campaigns/*/rounds/*/evaluation.json",
        "Write:fedloom/drafts/*",
    ]


def test_nobody_but_the_coordinator_the_gateway_and_the_evaluation_has_keys(tmp_path):
    file = prepare(tmp_path)

    assert [each.name for each in file.identities()] == ["evaluation", "gateway"]
    drawn = (file.coordinator, file.gateway, file.evaluation)
    assert len({pair.secret_key for pair in drawn}) == len(drawn)
