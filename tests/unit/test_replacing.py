"""A file is replaced in one step, and what was left over by a lost machine is no obstacle."""

import os
import stat

import pytest

from fl_core.artifacts.replacing import replace_file


def test_file_is_replaced_with_the_mode_that_is_stated(tmp_path):
    path = tmp_path / "folder" / "key"
    replace_file(path, b"old")

    replace_file(path, b"new", mode=0o600)

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_left_over_of_an_interrupted_write_is_no_obstacle(tmp_path):
    left = tmp_path / "key.new"
    left.write_bytes(b"half")
    left.chmod(0o644)

    replace_file(tmp_path / "key", b"whole", mode=0o600)

    assert (tmp_path / "key").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert not left.exists()


def test_old_bytes_stay_where_the_new_ones_do_not_reach_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "key"
    replace_file(path, b"old")

    def full(_descriptor):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")

    assert path.read_bytes() == b"old"
