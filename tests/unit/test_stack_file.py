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
    evaluation_identity,
    forget_process,
    prepared_stack_file,
    read_stack_file,
    record_process,
    recorded_processes,
    site_identity,
    stack_path,
    write_stack_file,
)


def prepare(home: Path, *, sites: tuple[str, ...] = (), prefect_port: int | None = None):
    file = prepared_stack_file(home, sites=sites, prefect_port=prefect_port, mlflow_port=None)
    return write_stack_file(home, file)


def test_ports_and_keys_stay_between_two_starts(tmp_path):
    first = prepare(tmp_path, sites=("north",))

    second = prepare(tmp_path, sites=("north",))

    assert second == first


def test_all_ports_of_a_new_home_are_distinct(tmp_path):
    file = prepare(tmp_path)

    ports = [file.prefect_port, file.mlflow_port, *file.s3_ports.values()]

    assert len(set(ports)) == 2 + len(fields(SeaweedPorts))


def test_new_site_gets_keys_of_its_own_and_the_others_keep_theirs(tmp_path):
    north = prepare(tmp_path, sites=("north",)).sites["north"]

    sites = prepare(tmp_path, sites=("south",)).sites

    assert sites["north"] == north
    assert sites["south"].secret_key != north.secret_key


def test_stated_port_is_kept_from_then_on(tmp_path):
    prepare(tmp_path, prefect_port=4242)

    assert prepare(tmp_path).prefect_port == 4242


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
    file = prepare(tmp_path, sites=("north",))

    assert file.sites["north"].secret_key not in repr(file)


def test_home_without_a_stack_has_no_file(tmp_path):
    assert read_stack_file(tmp_path) is None


def test_unreadable_stack_file_is_named(tmp_path):
    stack_path(tmp_path).write_text('{"version": 2}')

    with pytest.raises(ObjectCorrupt, match=r"stack\.json"):
        read_stack_file(tmp_path)


def test_process_record_comes_back_whole_and_goes_when_forgotten(tmp_path):
    server = ServerProcess("site north", 7, "", tmp_path / "log", 11, "token", 2, 3.0)
    record_process(tmp_path, server)

    assert recorded_processes(tmp_path) == {"site north": server}

    forget_process(tmp_path, server)
    assert recorded_processes(tmp_path) == {}


def test_site_may_write_its_own_updates_and_ledger_copies_only():
    identity = site_identity("north", S3Keys.draw())

    writes = [action for action in identity.actions if action.startswith(("Write", "Admin"))]

    assert writes == [
        "Write:fedloom/campaigns/*/rounds/*/updates/north/*",
        "Write:fedloom/witness/north/*",
    ]


def test_evaluation_worker_reads_no_sites_update_and_writes_results_only():
    actions = evaluation_identity(S3Keys.draw()).actions

    assert not any("updates" in action or action == "Admin" for action in actions)
    assert not any(action in {"Read:fedloom", "Read:fedloom/*"} for action in actions)
    assert [action for action in actions if action.startswith("Write")] == [
        "Write:fedloom/campaigns/*/rounds/*/evaluation.json",
        "Write:fedloom/drafts/*",
    ]


def test_home_of_before_gets_keys_for_its_evaluation_worker_and_keeps_them(tmp_path):
    old = prepare(tmp_path, sites=("north",)).model_copy(update={"evaluation": None})
    write_stack_file(tmp_path, old)

    first, second = prepare(tmp_path), prepare(tmp_path)

    assert first.evaluation is not None
    assert first.evaluation == second.evaluation
    assert [each.name for each in old.identities()] == ["north"]
    assert [each.name for each in first.identities()] == ["evaluation", "north"]
