"""SOUNDNESS rules 12 to 14 under power cuts: what a round left on a disk fits together.

A whole round of a site runs over real stores in one folder: ledger, outbox, its witness, and the
campaign's store. Its system calls are recorded, the power is cut after every one of them, and what
the model disk still holds is judged: a cut must not look like a rollback, nothing is trained before
its charge is on ledger and witness, and nothing has left before its commit is.
"""

import random

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.privacy.ledger import Ledger
from fl_core.privacy.ledger_entries import read_ledger
from fl_core.privacy.witness import WitnessedStore
from fl_core.rounds.plan import open_round
from fl_core.rounds.site_round import client_round
from fl_core.updates.signing import public_hex
from tests.soundness.test_durable_objects import ModelDisk, Recorder
from tests.worlds import NOW, FakeWork, campaign_of, open_site, world_of

FOLDERS = ("ledger", "outbox", "witness", "uploads")


class Uploads:
    """The campaign's store as the site sees it: plans from memory, uploads onto the disk."""

    def __init__(self, store: MemoryStore, disk: LocalStore) -> None:
        self._store, self._disk = store, disk

    def get(self, key, *, max_bytes=None):
        return self._store.get(key, max_bytes=max_bytes)

    def list(self, prefix):
        return self._store.list(prefix)

    def put_once(self, key, data):
        return self._disk.put_once(key, data)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return world, folder and the system calls of one round of site a, training included."""
    root = tmp_path_factory.mktemp("power")
    world = world_of(campaign_of())
    old = world.sites["a"]
    plan = open_round(world.assembly, world.store, round_number=1, now=NOW)
    recorder = Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        recorder.install(patch)
        stores = {name: LocalStore(root / name) for name in FOLDERS}
        unit = old.policy.unit
        Ledger.create(stores["ledger"], dataset=old.policy.dataset, unit=unit, key=old.key, now=NOW)
        disk = WitnessedStore("disk", stores["witness"], is_own=True)
        gone = WitnessedStore("coordinator", MemoryStore(), is_own=False)
        site = open_site(
            *("a", old.key, old.policy, stores["ledger"], stores["outbox"]),
            witnesses=(disk, gone),
        )
        work = FakeWork(world.assembly.shapes(1))
        work.on_train = lambda: recorder.note_promise("trained")
        client_round(
            site,
            work,
            assembly=world.assembly,
            store=Uploads(world.store, stores["uploads"]),
            plan=plan,
        )
        recorder.note_promise("done")
    return world, root, recorder.calls


def images(root, calls):
    """Yield the files left after a cut at every call, with the promises made before it."""
    rng = random.Random(14)  # noqa: S311  which names a disk keeps is no secret
    chances = [lambda: False, lambda: True, lambda: rng.random() < 0.5]
    disk, promised = ModelDisk(root), set()
    for call in calls:
        if call[0] == "promise":
            promised.add(call[1])
        else:
            disk.apply(call)
        for survives in chances:
            yield disk.after_power_cut(survives), frozenset(promised)


def part(files, folder):
    store = MemoryStore()
    for path, data in files.items():
        if path.startswith(f"{folder}/"):
            store.put_once(path.removeprefix(f"{folder}/"), data)
    return store


def kinds_at(world, files):
    """Return the kinds of entries on the ledger, and at the witness after a check of its copies."""
    site = world.sites["a"]
    ledger = part(files, "ledger")
    chain = read_ledger(ledger, public_hex(site.key)) if ledger.list("") else None
    entries = {} if chain is None else {entry.seq: entry for entry in chain.entries}
    witness = part(files, "witness")
    prefix = keys.witness("a", site.policy.dataset, site.policy.unit)
    held = {keys.witnessed_seq(prefix, key): witness.get(key) for key in witness.list(prefix)}
    differing = [
        seq
        for seq, data in held.items()
        if seq not in entries or ledger.get(keys.ledger_entry(seq)) != data
    ]
    assert differing == [], "a power cut looks like a rollback"
    return [e.kind for e in entries.values()], [entries[seq].kind for seq in sorted(held)]


def test_a_cut_never_looks_like_a_rollback_and_order_holds_on_the_disk(recorded):
    world, root, calls = recorded
    seen = set()
    for files, promised in images(root, calls):
        on_ledger, at_witness = kinds_at(world, files)
        if "trained" in promised:
            assert "reserve" in at_witness
        if any(path.startswith("uploads/") for path in files):
            assert "commit" in at_witness
        if "done" in promised:
            assert on_ledger == at_witness == ["genesis", "reserve", "commit"]
        seen.add((len(on_ledger), len(at_witness)))

    # The cuts fell between all the writes that matter.
    assert {(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)} <= seen


def test_after_any_cut_the_site_goes_on_by_itself_with_one_charge(recorded):
    world, root, calls = recorded
    old = world.sites["a"]
    judged = set()
    for files, promised in images(root, calls):
        if not any(path.startswith("ledger/entries/") for path in files):
            continue
        state = (frozenset(files), "trained" in promised)
        if state in judged:
            continue
        judged.add(state)
        stores = {name: part(files, name) for name in FOLDERS}
        disk = WitnessedStore("disk", stores["witness"], is_own=True)
        coordinator = WitnessedStore("coordinator", MemoryStore(), is_own=False)
        site = open_site(
            *("a", old.key, old.policy, stores["ledger"], stores["outbox"]),
            witnesses=(disk, coordinator),
        )
        work = FakeWork(world.assembly.shapes(1))
        plan = open_round(world.assembly, world.store, round_number=1, now=NOW)

        answer = client_round(
            site,
            work,
            assembly=world.assembly,
            store=Uploads(world.store, stores["uploads"]),
            plan=plan,
        )

        assert answer.status == "uploaded"
        assert len(site.ledger.events()) == 1
        held = site.outbox.committed(keys.exchange(old.policy.dataset, world.assembly.digest, 1))
        payload = stores["uploads"].get(keys.payload("tiny", 1, "a"))
        assert payload == held[keys.PAYLOAD]
    assert len(judged) > 12
