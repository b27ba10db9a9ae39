"""What is particular to the folder store; what all stores share is in tests/contract."""

import errno
import os
import stat

import pytest

from fl_core.artifacts import local
from fl_core.artifacts.local import INCOMING, LocalStore, file_system, require_local_disk
from fl_core.errors import ObjectCorrupt, PolicyRefused, StoreUnavailable

# Lines as proc(5) describes them: id, parent, device, root, mount point, options, -, type, ...
MOUNTINFO = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:51 / /data rw - ext4 /dev/vdb rw
41 40 0:52 / /data/shared rw - nfs4 nas:/export rw
42 27 0:53 / /mnt/with\\040blank rw master:7 - cifs //nas/share rw
43 27 0:54 / /mnt/sshfs rw - fuse.sshfs host:/ rw
44 27 0:55 / /over rw - nfs nas:/export rw
45 27 0:56 / /over rw - xfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/site", "ext4"),
        ("/data/ledger", "ext4"),
        ("/data/shared/ledger", "nfs4"),
        ("/data/shared-not", "ext4"),
        ("/mnt/with blank/x", "cifs"),
        ("/mnt/sshfs", "fuse.sshfs"),
        ("/over/x", "xfs"),
    ],
)
def test_file_system_is_that_of_the_deepest_and_latest_mount(tmp_path, path, kind):
    assert file_system(tmp_path.__class__(path), MOUNTINFO) == kind


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs"]
)
def test_ledger_on_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    table = tmp_path / "mountinfo"
    table.write_text(f"27 1 254:0 / / rw - {kind} source rw\n")
    monkeypatch.setattr(local, "_MOUNTS", table)

    with pytest.raises(PolicyRefused, match=f"is on {kind}, .* local disk"):
        require_local_disk(tmp_path / "ledger")


def test_ledger_on_an_unknown_platform_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_MOUNTS", tmp_path / "absent")

    with pytest.raises(PolicyRefused, match="cannot tell what file system"):
        require_local_disk(tmp_path)


def test_folder_that_is_not_there_yet_is_judged_by_where_it_would_be_made(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text("27 1 254:0 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(local, "_MOUNTS", table)

    require_local_disk(tmp_path / "not" / "yet")

    assert not (tmp_path / "not").exists()


def test_symlink_to_a_network_file_system_is_refused(tmp_path, monkeypatch):
    (tmp_path / "nas").mkdir()
    (tmp_path / "ledger").symlink_to(tmp_path / "nas")
    table = tmp_path / "mountinfo"
    table.write_text(
        f"27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:9 / {tmp_path}/nas rw - nfs4 nas:/ rw\n"
    )
    monkeypatch.setattr(local, "_MOUNTS", table)

    with pytest.raises(PolicyRefused, match="nfs4"):
        require_local_disk(tmp_path / "ledger")


def test_key_cannot_reach_outside_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"not ours")
    store = LocalStore(tmp_path / "store")
    store.put_once("a/b", b"x")

    for escape in ("../secret", "a/../../secret", "/etc/passwd", f"{INCOMING}/x"):
        with pytest.raises(ValueError, match="no key of a store"):
            store.get(escape)
        with pytest.raises(ValueError, match="no key of a store"):
            store.put_once(escape, b"x")
    with pytest.raises(ValueError, match="no prefix of a key"):
        store.list("../")


def test_files_are_readable_by_their_owner_only(tmp_path):
    LocalStore(tmp_path / "store").put_once("a/b", b"x")

    for path in (tmp_path / "store").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_nothing_temporary_is_left_by_winners_and_losers(tmp_path):
    store = LocalStore(tmp_path)

    store.put_once("a", b"1")
    store.put_once("a", b"2")

    assert list((tmp_path / INCOMING).iterdir()) == []
    assert store.list("") == ["a"]


def test_temporary_file_of_a_dead_writer_is_swept_after_a_day_and_a_fresh_one_is_kept(tmp_path):
    incoming = tmp_path / INCOMING
    incoming.mkdir()
    for name in ("dead", "alive"):
        (incoming / name).write_bytes(b"half")
    os.utime(incoming / "dead", (0, 0))

    LocalStore(tmp_path).put_once("a", b"1")

    assert [p.name for p in incoming.iterdir()] == ["alive"]


def test_full_disk_is_unavailable_and_leaves_no_object(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    store.put_once("before", b"x")

    def no_room(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room)
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            store.put_once("a", b"1")

    assert store.list("") == ["before"]
    assert list((tmp_path / INCOMING).iterdir()) == []


def test_disk_that_reads_back_other_bytes_is_corrupt(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    real = os.write

    def flips(descriptor, data):
        return real(descriptor, bytes(byte ^ 1 for byte in data))

    monkeypatch.setattr(os, "write", flips)

    with pytest.raises(ObjectCorrupt, match="does not read back"):
        store.put_once("a", b"1")


def test_reading_an_empty_place_makes_no_folder(tmp_path):
    store = LocalStore(tmp_path / "store")

    assert store.list("") == []
    assert store.list("campaigns/") == []
    assert not (tmp_path / "store").exists()
