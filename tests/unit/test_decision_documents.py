"""Decisions as documents: numbered, never lost to a race, one line each."""

import pytest
from worlds import NOW

from fl_core.artifacts.documents import from_bytes
from fl_core.artifacts.memory import MemoryStore
from fl_core.errors import ObjectCorrupt
from fl_core.rounds.site_decision import Ask, SiteDecision, decide, decisions, standing


def test_decisions_are_numbered_and_what_holds_follows_from_all_of_them():
    store = MemoryStore()
    for kind, ask in [
        ("pause", Ask()),
        ("refuse", Ask("a" * 64)),
        ("refuse", Ask("b" * 64, 3)),
        ("allow", Ask("a" * 64)),
        ("approve", Ask("b" * 64, 2, "c" * 64)),
        ("leave", Ask("d" * 64)),
        ("resume", Ask()),
    ]:
        decide(store, kind, ask, now=NOW)

    now = standing(store)

    assert [each.seq for each in decisions(store)] == [1, 2, 3, 4, 5, 6, 7]
    assert not now.is_paused
    assert now.refusal("a" * 64, 1) == ""
    assert now.refusal("b" * 64, 3) == "its operator refused the round"
    assert now.refusal("b" * 64, 2) == ""
    assert now.refusal("d" * 64, 1) == "the site has left the campaign"
    assert now.is_approved("b" * 64, 2, "c" * 64)
    assert not now.is_approved("b" * 64, 2, "0" * 64)


def test_two_decisions_at_once_are_both_kept():
    store = MemoryStore()
    put_once = store.put_once

    def raced(key, data):
        store.put_once = put_once
        decide(store, "pause", Ask(), now=NOW)
        return put_once(key, data)

    store.put_once = raced
    decide(store, "leave", Ask("a" * 64), now=NOW)

    assert [each.kind for each in decisions(store)] == ["pause", "leave"]


def test_why_cannot_paint_a_terminal():
    with pytest.raises(ObjectCorrupt):
        from_bytes(
            SiteDecision,
            b'{"seq":1,"kind":"pause","time":"2026-03-01T12:00:00Z","why":"\\u001b[2J"}',
            what="decision",
        )
