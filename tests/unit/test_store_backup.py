"""The campaigns' store in a folder, and back: rounds of real steps, folders on a real disk."""

import json

import pytest
from typer.testing import CliRunner

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import is_buried
from fl_core.errors import CampaignError, ObjectCorrupt, StoreUnavailable
from flows.cli.main import app
from tasks.store_backup import Copied, back_up, restore
from tests.known_updates import client_world
from tests.round_steps import finish, take_part
from tests.snapshots import copy_of
from tests.worlds import campaign_of, world_of


def play(world, number):
    for site in world.sites:
        take_part(world, site, number)
    return finish(world, number)


def objects(store):
    return {key: store.get(key) for key in store.list("")}


@pytest.fixture
def folder(tmp_path):
    return LocalStore(tmp_path / "backup")


def test_backup_holds_every_object_and_a_later_one_adds_what_is_new(folder):
    world = world_of(campaign_of())
    play(world, 1)
    first = back_up(world.store, folder)
    n_before = len(world.store.list(""))
    play(world, 2)
    second = back_up(world.store, folder)

    assert objects(folder) == objects(world.store)
    assert first == Copied(new=n_before, known=0, left_out=0)
    assert second == Copied(new=len(world.store.list("")) - n_before, known=n_before, left_out=0)


def test_campaign_goes_on_in_a_store_that_was_restored(folder):
    world = world_of(campaign_of())
    play(world, 1)
    back_up(world.store, folder)
    kept, world.store = world.store, MemoryStore()

    restore(folder, world.store)
    outcome = play(world, 2)

    assert outcome.contributors == ("a", "b", "c")
    assert all(world.store.get(key) == kept.get(key) for key in kept.list("campaigns/"))


def test_raw_updates_are_in_no_backup_and_their_keys_stay_taken(folder):
    world = client_world()
    raw = [keys.payload("tiny", 1, site) for site in "abc"]
    for site in "abc":
        take_part(world, site)
    during = back_up(world.store, folder)
    held = set(folder.list(""))
    finish(world)
    after = back_up(world.store, folder)

    assert during.left_out == 3
    assert held.isdisjoint(raw)
    assert keys.manifest("tiny", 1, "a") in held
    assert after.left_out == 0
    assert all(is_buried(folder, key) for key in raw)


def test_update_of_a_campaign_that_nobody_can_read_is_taken_for_a_raw_one(folder):
    store = MemoryStore()
    store.put_once(keys.payload("lost", 1, "a"), b"what is it")

    assert back_up(store, folder) == Copied(new=0, known=0, left_out=1)


def test_object_that_lost_its_hash_ends_the_backup(folder):
    class Damaged(MemoryStore):
        def get(self, key, *, max_bytes=None):  # noqa: ARG002  the protocol's
            raise ObjectCorrupt(f"object {key!r} has another sha-256 than it was written with")

    store = Damaged()
    store.put_once("rosters/000001.json", b"{}")

    with pytest.raises(ObjectCorrupt, match="another sha-256"):
        back_up(store, folder)


def test_what_appears_during_the_copy_is_copied_too(folder):
    """An object that is needed may be written behind a listing's back; the next look finds it."""
    store = MemoryStore()
    store.put_once("campaigns/a/b.json", b"1")

    back_up(
        store, folder, tell=lambda n: store.put_once(f"campaigns/{n}.json", b"2") if n < 5 else None
    )

    assert objects(folder) == objects(store)
    assert len(folder.list("")) == 5


def test_store_that_never_rests_is_refused(folder):
    store = MemoryStore()
    store.put_once("campaigns/0.json", b"1")

    with pytest.raises(StoreUnavailable, match="while no round is open"):
        back_up(store, folder, tell=lambda n: store.put_once(f"campaigns/{n}.json", b"1"))


def test_store_of_another_history_is_not_written_on(folder):
    world = world_of(campaign_of())
    backup = copy_of(world.store)
    back_up(backup, folder)
    other = world_of(campaign_of()).store
    before = objects(other)

    with pytest.raises(CampaignError, match="restore into an empty store"):
        restore(folder, other)

    assert objects(other) == before


def test_restoring_twice_changes_nothing(folder):
    world, store = world_of(campaign_of()), MemoryStore()
    back_up(world.store, folder)
    restore(folder, store)
    before = objects(store)

    again = restore(folder, store)

    assert again == Copied(new=0, known=len(before), left_out=0)
    assert objects(store) == before


def test_commands_copy_a_store_and_write_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_STORE", f"file://{tmp_path}/store")
    world = world_of(campaign_of())
    store = LocalStore(tmp_path / "store")
    for key, data in objects(world.store).items():
        store.put_once(key, data)
    kept = str(tmp_path / "backup")

    saved = CliRunner().invoke(app, ["backup", kept, "--json"])
    monkeypatch.setenv("FEDLOOM_STORE", f"file://{tmp_path}/new")
    written = CliRunner().invoke(app, ["restore", kept, "--json"])
    empty = CliRunner().invoke(app, ["restore", str(tmp_path / "nothing")])

    n = len(objects(store))
    assert json.loads(saved.stdout) == {"folder": kept, "new": n, "known": 0, "left_out": 0}
    assert json.loads(written.stdout) == {"folder": kept, "new": n, "known": 0, "left_out": 0}
    assert objects(LocalStore(tmp_path / "new")) == objects(world.store)
    assert isinstance(empty.exception, CampaignError)
