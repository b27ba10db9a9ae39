"""SOUNDNESS rule 13: what put_once promised is there after a power cut at any moment.

SIGKILL cannot show this, because the kernel keeps unsynced writes. So the system calls of a real
LocalStore are recorded and every prefix of them is replayed on a model disk, which forgets file
bytes that were not fsynced and names whose folder was not fsynced (POSIX promises no more). What
the disk may keep of the unsynced is drawn in three ways: nothing, all names, a random part.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fl_core.artifacts.local import INCOMING, LocalStore

WRITES = [
    ("entries/000001.json", b"first entry"),
    ("entries/000002.json", b"second entry"),
    ("exchanges/d/round/0001/end.json", b"deeper"),
    ("entries/000002.json", b"a loser of the race"),
]
EXPECTED = {"entries/000001.json": b"first entry", "entries/000002.json": b"second entry"}


@dataclass
class Node:
    """A file or folder of the model disk; ``synced_*`` is what a power cut cannot take."""

    is_folder: bool
    data: bytes = b""
    synced_data: bytes = b""
    names: dict[str, "Node"] = field(default_factory=dict)
    synced_names: dict[str, "Node"] = field(default_factory=dict)


class ModelDisk:
    """Replays recorded calls; ``after_power_cut`` says which files are left."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = Node(is_folder=True)

    def apply(self, call: tuple) -> None:
        name, path, *rest = call
        if name == "mkdir":
            self._folder(path).names[path.name] = Node(is_folder=True)
        elif name == "create":
            self._folder(path).names[path.name] = Node(is_folder=False)
        elif name == "write":
            self._node(path).data += rest[0]
        elif name == "link":
            self._folder(rest[0]).names[rest[0].name] = self._node(path)
        elif name == "unlink":
            del self._folder(path).names[path.name]
        elif name == "fsync":
            node = self._node(path)
            node.synced_data, node.synced_names = node.data, dict(node.names)

    def after_power_cut(self, survives) -> dict[str, bytes]:
        """Return the files by key; ``survives()`` decides for each unsynced name."""
        found: dict[str, bytes] = {}
        self._walk(self._top, "", survives, found)
        return {key: data for key, data in found.items() if f"/{INCOMING}/" not in key}

    def _walk(self, folder: Node, prefix: str, survives, found: dict[str, bytes]) -> None:
        kept = dict(folder.synced_names)
        kept.update({n: node for n, node in folder.names.items() if n not in kept and survives()})
        for name, node in kept.items():
            if node.is_folder:
                self._walk(node, f"{prefix}{name}/", survives, found)
            else:
                found[prefix + name] = node.synced_data

    def _node(self, path: Path) -> Node:
        node = self._top
        for part in path.relative_to(self._root).parts:
            node = node.names[part]
        return node

    def _folder(self, path: Path) -> Node:
        return self._node(path.parent)


def nothing(path: Path) -> bool:
    """Forget no sync at all."""
    return False


class Recorder:
    """Wraps the system calls of one process and notes those below ``root``."""

    def __init__(self, root: Path, *, forgets=nothing) -> None:
        self.calls: list[tuple] = []
        self._root = root
        self._forgets = forgets
        self._open: dict[int, Path] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        real = {name: getattr(os, name) for name in ("open", "write", "fsync", "link", "mkdir")}
        real["unlink"] = os.unlink

        def open_(path, flags, *rest, **named):
            descriptor = real["open"](path, flags, *rest, **named)
            self._open[descriptor] = Path(path)
            if flags & os.O_CREAT:
                self._note("create", Path(path))
            return descriptor

        def write(descriptor, data):
            # half of what was asked, as a full pipe or a signal would do
            n = real["write"](descriptor, bytes(data)[: max(1, len(data) // 2)])
            self._note("write", self._open[descriptor], bytes(data)[:n])
            return n

        def fsync(descriptor):
            real["fsync"](descriptor)
            if not self._forgets(self._open[descriptor]):
                self._note("fsync", self._open[descriptor])

        def link(source, target):
            real["link"](source, target)
            self._note("link", Path(source), Path(target))

        def mkdir(path, *rest):
            real["mkdir"](path, *rest)
            self._note("mkdir", Path(path))

        def unlink(path, *rest, **named):
            real["unlink"](path, *rest, **named)
            self._note("unlink", Path(path))

        for name, wrapper in {
            "open": open_, "write": write, "fsync": fsync,
            "link": link, "mkdir": mkdir, "unlink": unlink,
        }.items():  # fmt: skip
            patch.setattr(os, name, wrapper)

    def note_promise(self, key: str) -> None:
        self.calls.append(("promise", key))

    def _note(self, name: str, path: Path, *rest: object) -> None:
        if path.is_relative_to(self._root):
            self.calls.append((name, path, *rest))


def record(root: Path, *, forgets=nothing, two_processes: bool = False) -> list[tuple]:
    """Write through the real store below ``root`` (which exists) and return its system calls."""
    recorder = Recorder(root, forgets=forgets)
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        store = LocalStore(root / "store")
        for key, data in WRITES:
            writer = LocalStore(root / "store") if two_processes else store
            writer.put_once(key, data)
            recorder.note_promise(key)
    return recorder.calls


def broken_promises(root: Path, calls: list[tuple]) -> list[str]:
    """Cut the power after every call; return what was torn, or promised and lost."""
    rng = random.Random(13)  # noqa: S311  which names a disk keeps is no secret
    chances = [lambda: False, lambda: True, *[lambda: rng.random() < 0.5] * 3]
    broken: list[str] = []
    whole = {f"store/{key}": data for key, data in reversed(WRITES)}
    for cut in range(len(calls) + 1):
        disk, promised = ModelDisk(root), set()
        for call in calls[:cut]:
            if call[0] == "promise":
                promised.add(f"store/{call[1]}")
            else:
                disk.apply(call)
        for survives in chances:
            left = disk.after_power_cut(survives)
            broken += [f"torn {key} at {cut}" for key, data in left.items() if whole[key] != data]
            broken += [f"lost {key} at {cut}" for key in promised - left.keys()]
    return broken


@pytest.mark.parametrize("two_processes", [False, True], ids=["one process", "one per write"])
def test_after_a_power_cut_an_object_is_absent_or_whole_and_a_promised_one_is_there(
    tmp_path, two_processes
):
    calls = record(tmp_path, two_processes=two_processes)

    broken = broken_promises(tmp_path, calls)

    assert broken == []
    assert sum(call[0] == "promise" for call in calls) == len(WRITES)


@pytest.mark.parametrize(
    ("forgets", "what"),
    [
        (lambda path: path.parent.name == INCOMING, "torn"),
        (lambda path: path.name == "entries", "lost"),
        (lambda path: path.name == "store", "lost"),
        (lambda path: path.name == "d", "lost"),
    ],
    ids=["of the file", "of the object's folder", "of the store's root", "of a folder between"],
)
def test_the_model_disk_shows_every_sync_that_is_left_out(tmp_path, forgets, what):
    calls = record(tmp_path, forgets=forgets)

    broken = broken_promises(tmp_path, calls)

    assert any(text.startswith(what) for text in broken)


def test_a_reader_of_an_object_whose_writer_died_before_syncing_makes_it_durable(tmp_path):
    calls = record(tmp_path, forgets=lambda path: path.is_dir())
    recorder = Recorder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        for key in EXPECTED:
            LocalStore(tmp_path / "store").get(key)
            recorder.note_promise(key)

    without_reader = broken_promises(tmp_path, calls)
    disk = ModelDisk(tmp_path)
    for call in [*calls, *recorder.calls]:
        if call[0] != "promise":
            disk.apply(call)
    left = disk.after_power_cut(lambda: False)

    assert without_reader
    assert {f"store/{key}": data for key, data in EXPECTED.items()}.items() <= left.items()


def test_a_writer_that_loses_to_an_unsynced_object_makes_it_durable(tmp_path):
    calls = record(tmp_path, forgets=lambda path: path.is_dir())
    recorder = Recorder(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        wrote = LocalStore(tmp_path / "store").put_once("entries/000001.json", b"other")

    disk = ModelDisk(tmp_path)
    for call in [*calls, *recorder.calls]:
        if call[0] != "promise":
            disk.apply(call)

    assert not wrote
    assert disk.after_power_cut(lambda: False)["store/entries/000001.json"] == b"first entry"
