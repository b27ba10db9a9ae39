"""Whether a site's machine can carry a campaign: disk, file system, memory, base model.

Memory is what is free to this process, so a limit of its container or service counts like the
machine's. What a base model needs comes from the headers of its weights: it is held in float32
whatever its file holds, and is never trained, so it needs no gradients of its own.
"""

import math
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from fl_core.artifacts.local import LocalStore, require_local_disk
from fl_core.errors import PolicyRefused, StoreError
from tasks.checks import Check

BYTES_PER_PARAMETER = 4
# A worker's child with torch, transformers, peft and the gate imported, and no model (measured).
RUNTIME_BYTES = 650_000_000
LEAST_FREE_BYTES = 200_000_000
SCARCE_FREE_BYTES = 2_000_000_000
SLOW_SYNC_S = 1.0
GGUF = ".gguf"
# Kernels write a number near 2^63 where a cgroup has no limit.
_UNLIMITED = 1 << 60


def disk_checks(folders: Mapping[str, Path]) -> Iterator[Check]:
    """Check room and promises of the disks that a site's durable folders are on.

    Args:
        folders: By what people call them; one that does not exist yet counts as its parent.
    """
    for name, folder in folders.items():
        near = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
        yield _room(f"room for the {name}", near)
        yield _promises(f"disk of the {name}", near)


def _room(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free at {folder}"
    if free >= SCARCE_FREE_BYTES:
        return Check(name, "ok", found)
    remedy = f"expected at least {SCARCE_FREE_BYTES / 1e9:.0f} GB; a full disk stops every round"
    return Check(name, "fail" if free < LEAST_FREE_BYTES else "warn", found, remedy)


def _promises(name: str, folder: Path) -> Check:
    """Write, sync and link an object as a ledger does, in a folder beside it."""
    probe = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        require_local_disk(folder)
        store, began = LocalStore(probe), time.monotonic()
        is_once = store.put_once("probe", b"1") and not store.put_once("probe", b"2")
        took_s = time.monotonic() - began
    except (PolicyRefused, StoreError) as error:
        return Check(name, "fail", str(error), error.hint or "move the folder to a local disk")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    if not is_once:
        return Check(name, "fail", f"{folder} lets a name be written twice", "use ext4 or xfs")
    found = f"synced in {1000 * took_s:.0f} ms, each name written once"
    if took_s > SLOW_SYNC_S:
        return Check(name, "warn", found, "every charge waits for several syncs; use another disk")
    return Check(name, "ok", found)


def memory_check(name: str, model: Path, *, available: int) -> Check:
    """Compare what is free with what a base model needs.

    Args:
        name: The base model, as campaigns name it.
        model: Its folder, or GGUF file.
        available: Bytes that this process may still take.
    """
    line, count = f"memory for {name}", parameters_of(model)
    if count == 0:
        return Check(line, "warn", f"no weights in {model}", "expected safetensors or a GGUF file")
    weights = count * BYTES_PER_PARAMETER
    least, ample = RUNTIME_BYTES + weights, RUNTIME_BYTES + 2 * weights
    found = (
        f"{available / 1e9:.1f} GB free, {least / 1e9:.1f} GB to load {count / 1e6:.0f} million "
        "parameters in float32, and activations on top"
    )
    if available >= ample:
        return Check(line, "ok", found)
    remedy = "free memory, raise the limit of the service, or ask for a smaller base model"
    return Check(line, "fail" if available < least else "warn", found, remedy)


def parameters_of(model: Path) -> int:
    """Return how many numbers a base model's weights hold, from their headers alone."""
    if model.suffix == GGUF:
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(model).tensors)
    total = 0
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total


def available_memory(root: Path = Path("/")) -> int:
    """Return how many bytes this process may still take, of the machine and of its cgroups.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    kilobytes = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    free = [int(kilobytes.split()[1]) * 1024]
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            free += _left(root / "sys/fs/cgroup", path, names=("memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            free += _left(root / "sys/fs/cgroup/memory", path, names=names)
    return min(free)


def _left(mount: Path, path: str, *, names: tuple[str, str]) -> Iterator[int]:
    """Yield what every cgroup from the process' own up to the mount leaves.

    In a container the path is often that of the host, where only the mount itself exists.
    """
    own = mount / path.lstrip("/")
    for folder in (own, *own.parents):
        limit, used = (folder / name for name in names)
        if limit.is_file() and used.is_file():
            stated = limit.read_text(encoding="ascii").strip()
            if stated != "max" and int(stated) < _UNLIMITED:
                yield max(0, int(stated) - int(used.read_text(encoding="ascii")) + _cache(folder))
        if folder == mount:
            return


def _cache(folder: Path) -> int:
    """Return the file cache of a cgroup that the kernel gives back when memory is short."""
    path = folder / "memory.stat"
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    found = dict(line.split(" ", 1) for line in lines)
    return int(found.get("total_inactive_file", found.get("inactive_file", "0")))
