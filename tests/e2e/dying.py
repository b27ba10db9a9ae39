"""Kill a process of the real program at a named point of its work, once.

A test starts a worker with ``environment_of``. Its variables reach the worker's children too, where
the work is done, and Python itself loads this module there, before anything of the program
(``dying_process/sitecustomize.py``); nothing of the program knows of it. Each point hangs on one
function of the real code: it is wrapped when its module is loaded. Who comes to a point of its list
for the first time leaves a note and is killed; whoever comes later finds the note and goes on.
"""

import functools
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

VARIABLE = "DYING_POINTS"
ROOT = Path(__file__).parents[2]
# What was handed to the kernel is to arrive, so that the other side has half of it.
_ARRIVES_S = 0.5

Wrapped = Callable[..., Any]


@dataclass(frozen=True)
class Death:
    """One point at which a process dies.

    Attributes:
        point: A key of ``SEAMS``.
        round: The round in which it dies.
        takes_parent: Whether the worker above it dies too, as with a power cut.
    """

    point: str
    round: int
    takes_parent: bool = False

    @property
    def note(self) -> str:
        return f"{self.round:04d}-{self.point}"


@dataclass(frozen=True)
class Armed:
    """A death in the process that is to die."""

    death: Death
    notes: Path

    @property
    def part_of_key(self) -> str:
        """What the key of every object of the death's round has in it."""
        return f"/{self.death.round:04d}/"

    def is_due(self) -> bool:
        return not (self.notes / self.death.note).exists()

    def die(self) -> None:
        """Kill this process, unless one has died here before."""
        try:
            with (self.notes / self.death.note).open("x") as note:
                note.write(str(os.getpid()))
        except FileExistsError:
            return
        if self.death.takes_parent:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        # The signal is on its way; nothing more of the program may run.
        signal.pause()


def environment_of(deaths: Sequence[Death], notes: Path) -> dict[str, str]:
    """Return the variables that make the processes below a worker die at these points."""
    paths = [str(Path(__file__).parent / "dying_process"), str(ROOT)]
    points = {"notes": str(notes), "deaths": [asdict(death) for death in deaths]}
    return {"PYTHONPATH": os.pathsep.join(paths), VARIABLE: json.dumps(points)}


def arm() -> None:
    """Wrap what the variable names, as soon as its module is loaded in this process."""
    stated = json.loads(os.environ.get(VARIABLE, '{"notes": "", "deaths": []}'))
    armed = [Armed(Death(**death), Path(stated["notes"])) for death in stated["deaths"]]
    if armed:
        sys.meta_path.insert(0, _Seams(armed))


class _Seams(MetaPathFinder):
    def __init__(self, armed: Sequence[Armed]) -> None:
        self._armed = armed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        found = [(a, s) for a in self._armed for s in SEAMS[a.death.point] if s.module == name]
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if found else None
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Wrapping(spec.loader, found))
        return spec


class _Wrapping:
    """A module's own loader, and what is done to the module then."""

    def __init__(self, loader: Loader, found: "Sequence[tuple[Armed, Seam]]") -> None:
        self._loader, self._found = loader, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        for armed, seam in self._found:
            *owners, name = seam.function.split(".")
            owner = functools.reduce(getattr, owners, module)
            original = getattr(owner, name)
            setattr(owner, name, functools.wraps(original)(seam.wrap(original, armed)))


@dataclass(frozen=True)
class Seam:
    """A function of the program, and what it becomes."""

    module: str
    function: str
    wrap: Callable[[Wrapped, Armed], Wrapped]


def _in_loading(load_base: Wrapped, armed: Armed) -> Wrapped:
    def loads(*args: Any, **kwargs: Any) -> Any:
        base = load_base(*args, **kwargs)
        armed.die()
        return base

    return loads


def _after_reserve(reserve: Wrapped, armed: Armed) -> Wrapped:
    def reserves(*args: Any, **kwargs: Any) -> Any:
        entry = reserve(*args, **kwargs)
        if kwargs["round_number"] == armed.death.round:
            armed.die()
        return entry

    return reserves


_training: list[int] = []


def _notes_round(train: Wrapped, armed: Armed) -> Wrapped:
    del armed

    def trains(work: Any, exchange: Any) -> Any:
        _training.append(exchange.round_number)
        return train(work, exchange)

    return trains


def _in_step(noised_gradient: Wrapped, armed: Armed) -> Wrapped:
    def draws(*args: Any, **kwargs: Any) -> Any:
        gradient = noised_gradient(*args, **kwargs)
        if _training[-1:] == [armed.death.round]:
            armed.die()
        return gradient

    return draws


def _after_commit(commit: Wrapped, armed: Armed) -> Wrapped:
    def commits(outbox: Any, prefix: str, files: Any) -> Any:
        committed = commit(outbox, prefix, files)
        if prefix.endswith(armed.part_of_key):
            armed.die()
        return committed

    return commits


def _in_body(file: str) -> Callable[[Wrapped, Armed], Wrapped]:
    def wrap(build_request: Wrapped, armed: Armed) -> Wrapped:
        def builds(client: Any, method: str, url: str, **kwargs: Any) -> Any:
            if method == "PUT" and _is_of(unquote(str(url)), file, armed) and armed.is_due():
                body = kwargs["content"]
                kwargs["headers"] = {"Content-Length": str(len(body))}
                kwargs["content"] = _half(body, armed)
            return build_request(client, method, url, **kwargs)

        return builds

    return wrap


def _half(body: bytes, armed: Armed) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    time.sleep(_ARRIVES_S)
    armed.die()
    yield body[len(body) // 2 :]


def _before(file: str) -> Callable[[Wrapped, Armed], Wrapped]:
    def wrap(put_once: Wrapped, armed: Armed) -> Wrapped:
        def puts(store: Any, key: str, data: bytes) -> Any:
            if _is_of(key, file, armed):
                armed.die()
            return put_once(store, key, data)

        return puts

    return wrap


def _after(file: str) -> Callable[[Wrapped, Armed], Wrapped]:
    def wrap(put_once: Wrapped, armed: Armed) -> Wrapped:
        def puts(store: Any, key: str, data: bytes) -> Any:
            written = put_once(store, key, data)
            if _is_of(key, file, armed):
                armed.die()
            return written

        return puts

    return wrap


def _is_of(key: str, file: str, armed: Armed) -> bool:
    return key.endswith("/" + file) and armed.part_of_key in key


def _site(wrap: Callable[[Wrapped, Armed], Wrapped]) -> tuple[Seam]:
    return (Seam("tasks.gateway_store", "GatewayStore.put_once", wrap),)


def _coordinator(wrap: Callable[[Wrapped, Armed], Wrapped]) -> tuple[Seam]:
    return (Seam("tasks.object_store", "S3Store.put_once", wrap),)


SEAMS: dict[str, tuple[Seam, ...]] = {
    "loading": (Seam("fl_core.models.loading", "load_base", _in_loading),),
    "reserved": (Seam("fl_core.privacy.ledger", "Ledger.reserve", _after_reserve),),
    "training": (
        Seam("fl_core.training.site_work", "ModelWork.train", _notes_round),
        Seam("fl_core.training.private_training", "noised_gradient", _in_step),
    ),
    "drawn": (Seam("fl_core.updates.outbox", "Outbox.commit", _after_commit),),
    "half-uploaded": (Seam("httpx", "Client.build_request", _in_body("payload.safetensors")),),
    "payload-uploaded": _site(_after("payload.safetensors")),
    "manifest-uploaded": _site(_after("manifest.json")),
    "before-plan": _coordinator(_before("plan.json")),
    "planned": _coordinator(_after("plan.json")),
    "collected": _coordinator(_after("collected.json")),
    "charged": _coordinator(_after("charge.json")),
    "aggregated": _coordinator(_after("release.safetensors")),
    "before-outcome": _coordinator(_before("outcome.json")),
    "released": _coordinator(_after("outcome.json")),
    "registered": _coordinator(_before("logged.json")),
}
"""Points by name: where the code comes to them, in the order of a round, sites first."""
