"""What sites said last, kept write-once: each change of versions is a document, in its order."""

from datetime import UTC, datetime, timedelta

from fl_core.artifacts.memory import MemoryStore
from tasks.hello import Hello
from tasks.said_hellos import hellos_of, keep_hello, latest_hello

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def hello(version: str, site: str = "north") -> Hello:
    return Hello(site=site, protocol=1, versions={"fedloom": version})


def test_site_that_never_said_anything_has_no_last_word():
    assert latest_hello(MemoryStore(), "north") is None


def test_same_words_again_leave_one_document():
    store = MemoryStore()

    kept = [keep_hello(store, hello("0.1.0"), now=NOW + timedelta(days=day)) for day in range(9)]

    assert kept == [True] + [False] * 8
    assert len(store.list(hellos_of("north"))) == 1


def test_site_that_goes_back_to_an_earlier_version_has_said_that_last():
    store = MemoryStore()
    for day, version in enumerate(("0.1.0", "0.2.0", "0.1.0")):
        keep_hello(store, hello(version), now=NOW + timedelta(days=day))

    said = latest_hello(store, "north")

    assert said is not None
    assert (said.hello, said.at) == (hello("0.1.0"), NOW + timedelta(days=2))
    assert len(store.list(hellos_of("north"))) == 3


def test_words_of_one_site_are_not_those_of_another_whose_name_begins_alike():
    store = MemoryStore()
    keep_hello(store, hello("0.9.0", site="north-2"), now=NOW)

    assert latest_hello(store, "north") is None


class CountingStore(MemoryStore):
    """A store that counts the objects that are read."""

    n_reads = 0

    def get(self, key, *, max_bytes=None):
        self.n_reads += 1
        return super().get(key, max_bytes=max_bytes)


def test_only_the_last_word_is_read_however_many_there_are():
    store = CountingStore()
    for minute in range(40):
        keep_hello(store, hello(f"0.{minute % 2}.0"), now=NOW + timedelta(minutes=minute))
    store.n_reads = 0

    said = latest_hello(store, "north")

    assert store.n_reads == 1
    assert said is not None
    assert said.at == NOW + timedelta(minutes=39)


def test_word_after_the_clock_was_set_back_is_the_last_all_the_same():
    store = MemoryStore()
    keep_hello(store, hello("0.1.0"), now=NOW)

    keep_hello(store, hello("0.2.0"), now=NOW - timedelta(days=1))

    said = latest_hello(store, "north")
    assert said is not None
    assert said.hello == hello("0.2.0")
