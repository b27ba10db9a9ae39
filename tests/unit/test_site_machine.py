"""What the doctor makes of a site's disk and memory, over real files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_core.artifacts import local
from tasks import site_machine
from tasks.site_machine import available_memory, disk_checks, memory_check, parameters_of

GB = 10**9
MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def model(tmp_path):
    """A base model of two files, 3 * 4 + 5 + 7 numbers."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(
        {"a": np.zeros((3, 4), np.float16), "b": np.zeros(5, np.float32)},
        folder / "model-1.safetensors",
    )
    save_file({"c": np.zeros(7, np.float32)}, folder / "model-2.safetensors")
    return folder


@pytest.fixture
def machine(tmp_path):
    """A machine with 8.192 GB free and cgroups as given: path below `sys/fs/cgroup` -> text."""

    def made(own: str, files: dict[str, str]) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(MEMINFO)
        (tmp_path / "proc/self/cgroup").write_text(own)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return made


def test_weights_are_counted_over_all_files_from_their_headers(model):
    assert parameters_of(model) == 3 * 4 + 5 + 7


def test_weights_of_a_gguf_file_are_counted(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("a", np.zeros((6, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert parameters_of(path) == 6 * 32


# 510 million parameters in float32 are 2.04 GB: 2.69 GB to load, 4.73 GB with as much again.
@pytest.mark.parametrize(
    ("available", "verdict"),
    [(5 * GB, "ok"), (4 * GB, "warn"), (2 * GB, "fail")],
)
def test_memory_is_held_against_the_model_in_float32(available, verdict, monkeypatch, tmp_path):
    monkeypatch.setattr(site_machine, "parameters_of", lambda _: 510_000_000)

    check = memory_check("big", tmp_path, available=available)

    assert check.verdict == verdict
    assert "2.7 GB to load 510 million" in check.found
    assert bool(check.remedy) == (verdict != "ok")


def test_model_without_weights_is_named(tmp_path):
    check = memory_check("empty", tmp_path, available=GB)

    assert (check.verdict, check.found) == ("warn", f"no weights in {tmp_path}")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {}, 8_192_000_000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/b/memory.current": "5\n"}, 8_192_000_000),
        ("0::/a/b\n", {"a/b/memory.max": "3000\n", "a/b/memory.current": "1000\n"}, 2000),
        # A limit above the service counts too, and file cache is given back: 900 - 800 + 300.
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "3000\n",
                "a/b/memory.current": "100\n",
                "a/memory.max": "900\n",
                "a/memory.current": "800\n",
                "a/memory.stat": "anon 500\ninactive_file 300\n",
            },
            400,
        ),
        # In a container the path is the host's and only the mount itself is there.
        ("0::/host/path\n", {"memory.max": "700\n", "memory.current": "100\n"}, 600),
        (
            "4:memory:/x\n0::/\n",
            {"memory/x/memory.limit_in_bytes": "500\n", "memory/x/memory.usage_in_bytes": "200\n"},
            300,
        ),
        # The kernel's word for no limit in version 1.
        (
            "4:memory:/x\n",
            {
                "memory/x/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/x/memory.usage_in_bytes": "200\n",
            },
            8_192_000_000,
        ),
        ("0::/a\n", {"a/memory.max": "100\n", "a/memory.current": "500\n"}, 0),
    ],
    ids=["machine", "unlimited", "limit", "above", "container", "v1", "v1 unlimited", "over"],
)
def test_free_memory_is_that_of_the_narrowest_cgroup(own, files, expected, machine):
    assert available_memory(machine(own, files)) == expected


def test_free_memory_of_this_machine_is_read():
    assert available_memory() > 0


@pytest.mark.parametrize(("free", "verdict"), [(3 * GB, "ok"), (GB, "warn"), (10**8, "fail")])
def test_room_is_judged_where_the_folder_will_be(free, verdict, monkeypatch, tmp_path):
    monkeypatch.setattr(site_machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    room, _ = disk_checks({"ledger": tmp_path / "site" / "ledger"})

    assert room.name == "room for the ledger"
    assert room.verdict == verdict
    assert str(tmp_path) in room.found


def test_disk_is_tried_by_writing_and_nothing_is_left_behind(tmp_path):
    _, promises = disk_checks({"outbox": tmp_path})

    assert promises.verdict == "ok"
    assert "written once" in promises.found
    assert list(tmp_path.iterdir()) == []


def test_network_disk_is_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 1 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {tmp_path} rw - nfs4 host:/x rw\n"
    )
    monkeypatch.setattr(local, "_MOUNTS", mounts)

    _, promises = disk_checks({"ledger": tmp_path})

    assert promises.verdict == "fail"
    assert "nfs4" in promises.found
    assert "local disk" in promises.remedy


def test_disk_that_cannot_be_written_is_named_with_a_remedy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(local.os, "fsync", refuse)

    _, promises = disk_checks({"ledger": tmp_path})

    assert promises.verdict == "fail"
    assert "Read-only file system" in promises.found
    assert promises.remedy
