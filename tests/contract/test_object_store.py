"""What every store must keep, on the real thing.

To try your own S3-compatible server::

    FEDLOOM_S3_ENDPOINT=https://s3.example.org FEDLOOM_S3_ACCESS_KEY=... \\
    FEDLOOM_S3_SECRET_KEY=... FEDLOOM_S3_BUCKET=trial pytest tests/contract/test_object_store.py

Objects are left behind under a fresh prefix, because stores are never asked to delete.
"""

import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fl_core.artifacts.local import LocalStore
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import TOMBSTONE, SizedStore, bury, exists, is_buried
from fl_core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from tasks.object_store import PROBE_KEY, connect, ensure_bucket, require_write_once

N_THREADS, N_KEYS = 8, 200


@pytest.fixture(params=["memory", "folder", "s3"])
def open_store(request, tmp_path):
    """A function that opens the same empty store, as another process would."""
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    if request.param == "folder":
        return lambda: LocalStore(tmp_path / "store")
    location = request.getfixturevalue("s3_location")
    fresh = replace(location, prefix=f"{location.prefix}/{secrets.token_hex(8)}")
    return lambda: connect(fresh)


@pytest.fixture
def store(open_store):
    return open_store()


def test_object_comes_back_as_it_was_written_also_to_another_process(store, open_store):
    assert store.put_once("campaigns/a/campaign.json", b"{}")

    assert store.get("campaigns/a/campaign.json") == b"{}"
    assert open_store().get("campaigns/a/campaign.json") == b"{}"


def test_length_of_an_object_is_known_before_it_is_read(store):
    store.put_once("objects/a", bytes(1000))
    store.put_once("objects/empty", b"")

    assert isinstance(store, SizedStore)
    assert [store.size("objects/a"), store.size("objects/empty")] == [1000, 0]
    for absent in ("objects/b", "objects"):
        with pytest.raises(ObjectMissing):
            store.size(absent)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", bytes(range(256)) * 3, b"\r\n--boundary\r\n", "żółw".encode("utf-16")],
    ids=["empty", "nul", "all bytes", "looks like http", "utf-16"],
)
def test_any_bytes_are_kept(store, data):
    store.put_once("odd", data)

    assert store.get("odd") == data


def test_second_write_is_refused_and_changes_nothing(store, open_store):
    store.put_once("a/b", b"first")

    assert not store.put_once("a/b", b"second, longer")
    assert not open_store().put_once("a/b", b"third")
    assert store.get("a/b") == b"first"


def test_missing_object_is_missing_and_named(store):
    store.put_once("a/b", b"x")

    for key in ("a", "a/c", "a/b/c", "z"):
        with pytest.raises(ObjectMissing, match=f"'{key}'"):
            store.get(key)


def test_discarded_object_is_gone_for_everybody_and_twice_is_no_error(store, open_store):
    store.put_once("a/b", b"raw")

    for _ in range(2):
        store.discard("a/b")

    assert open_store().list("a/") == []
    with pytest.raises(ObjectMissing):
        open_store().get("a/b")


def test_buried_key_is_taken_for_good_whether_something_lay_there_or_not(store, open_store):
    store.put_once("a/raw", b"raw")

    for key in ("a/raw", "a/never"):
        bury(store, key)
        bury(store, key)

        assert not open_store().put_once(key, b"late")
        assert open_store().get(key) == TOMBSTONE
        assert is_buried(open_store(), key)
    assert not is_buried(store, "a/other")


def test_object_longer_than_asked_is_refused_and_one_of_that_length_is_read(store):
    store.put_once("a", b"12345")

    assert store.get("a", max_bytes=5) == b"12345"
    with pytest.raises(ObjectCorrupt, match="has 5 bytes, at most 4 are read"):
        store.get("a", max_bytes=4)
    assert store.get("a") == b"12345"


def test_list_is_sorted_and_goes_by_prefix_not_by_folder(store):
    keys = ["rounds/0010/plan.json", "rounds/0002/plan.json", "rounds/0002/updates/a/m", "round-x"]
    for key in keys:
        store.put_once(key, b"x")

    assert store.list("") == sorted(keys)
    assert store.list("rounds/") == sorted(keys[:3])
    assert store.list("rounds/0002/") == ["rounds/0002/plan.json", "rounds/0002/updates/a/m"]
    assert store.list("rounds/00") == sorted(keys[:3])
    assert store.list("round") == sorted(keys)
    assert store.list("rounds/0002/plan.json") == ["rounds/0002/plan.json"]
    assert store.list("nothing/") == []
    assert exists(store, "rounds/0002/plan.json")
    assert not exists(store, "rounds/0002/plan")


def test_list_is_complete_beyond_one_page(store):
    keys = [f"page/{n:04d}" for n in range(1100)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        assert all(pool.map(lambda key: store.put_once(key, b"x"), keys))

    assert store.list("page/") == keys


def test_of_eight_racing_writers_exactly_one_wins_every_key(store, open_store):
    writers = [open_store() for _ in range(N_THREADS)]

    def write_all(writer: int) -> list[str]:
        keys = [f"race/{n:03d}" for n in range(N_KEYS)]
        return [k for k in keys if writers[writer].put_once(k, f"{k} by {writer}".encode())]

    with ThreadPoolExecutor(N_THREADS) as pool:
        won = list(pool.map(write_all, range(N_THREADS)))

    wins = Counter(key for keys in won for key in keys)
    assert len(wins) == N_KEYS
    assert set(wins.values()) == {1}
    for writer, keys in enumerate(won):
        for key in keys:
            assert store.get(key) == f"{key} by {writer}".encode()
    assert store.list("race/") == sorted(wins)


def test_big_object_is_whole_for_readers_that_come_while_it_is_written(store, open_store):
    data = secrets.token_bytes(1 << 20) * 24
    seen: list[bytes] = []

    def read_until_there(_: int) -> bytes:
        reader = open_store()
        while True:
            try:
                found = reader.get("big")
            except ObjectMissing:
                continue
            seen.append(found)
            return found

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_until_there, n) for n in range(3)]
        pool.submit(store.put_once, "big", data).result()
        found = [reader.result() for reader in readers]

    assert all(each == data for each in found)


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a//b", "a/", "../a", "a/../b", "a/./b", ".hidden/a", "a\nb", "a\\b", "x" * 901],
)
def test_key_that_some_store_could_not_hold_is_refused_by_all(store, key):
    for call in (lambda: store.put_once(key, b"x"), lambda: store.get(key)):
        with pytest.raises(ValueError, match="is no key of a store"):
            call()


@pytest.mark.parametrize("key", ["ä/ö.json", "a b/c+d=e&f%20g", "a/b.c-d_e~f", "x" * 200])
def test_unusual_but_plain_key_is_kept(store, key):
    store.put_once(key, b"x")

    assert store.get(key) == b"x"
    assert store.list("") == [key]


def test_store_passes_the_probe_for_write_once_every_time(store):
    for _ in range(2):
        require_write_once(store)

    assert store.list("") == [PROBE_KEY]


def test_bucket_may_be_made_twice_and_holds_objects_then(s3_location):
    store = connect(replace(s3_location, bucket=f"fedloom-{secrets.token_hex(6)}"))

    for _ in range(2):
        ensure_bucket(store)

    assert store.list("") == []
    assert store.put_once("a", b"x")


def test_wrong_secret_is_refused_with_a_remedy_and_not_shown(s3_location):
    wrong = replace(s3_location, secret_key="0123456789abcdef-wrong")

    with pytest.raises(StoreUnavailable, match="cannot read 'a'") as caught:
        connect(wrong).get("a")

    assert "check access key" in caught.value.hint
    assert "0123456789abcdef-wrong" not in str(caught.value) + repr(wrong)


def test_prefixes_of_one_bucket_do_not_see_each_other(s3_location):
    left, right = (
        connect(replace(s3_location, prefix=f"{s3_location.prefix}/{side}"))
        for side in ("left", "right")
    )

    left.put_once("a", b"left")
    right.put_once("a", b"right")

    assert left.get("a") == b"left"
    assert right.list("") == ["a"]
