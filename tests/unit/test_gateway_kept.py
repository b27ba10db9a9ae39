"""What the gateway keeps of what it has read: files of adapters, within a bound, nothing else."""

import pytest

from fl_core.artifacts import keys
from flows.gateway.kept import Kept

ADAPTER = keys.adapter("c", "a" * 64)


@pytest.mark.parametrize(
    "key",
    [
        keys.plan("c", 1),
        keys.campaign("c"),
        keys.payload("c", 1, "north"),
        "rosters/0001.json",
        f"{ADAPTER}below/plan.json",
        keys.adapter("c", "A" * 64) + "head.safetensors",
    ],
)
def test_what_is_not_named_by_its_content_is_not_kept(key):
    kept = Kept()

    kept.keep(key, (b"bytes", "hash"))

    assert kept.get(key) is None


def test_file_that_was_asked_for_last_stays_when_there_is_no_more_room():
    kept = Kept(max_bytes=40)
    for name in "abcd":
        kept.keep(ADAPTER + name, (name.encode() * 10, name))
    kept.get(ADAPTER + "a")

    kept.keep(ADAPTER + "e", (b"e" * 10, "e"))

    assert kept.get(ADAPTER + "a") == (b"a" * 10, "a")
    assert kept.get(ADAPTER + "b") is None
    assert kept.get(ADAPTER + "e") == (b"e" * 10, "e")


def test_file_that_would_push_out_the_others_is_passed_over():
    kept = Kept(max_bytes=40)

    kept.keep(ADAPTER + "long", (b"x" * 11, "x"))

    assert kept.get(ADAPTER + "long") is None
