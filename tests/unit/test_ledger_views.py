"""How a ledger is shown: the epsilon that decides, and beside it what both accountants say."""

import pytest

from flows.cli.ledger_views import ledger_table, recovery_text

DOCUMENT = {
    "site": "north",
    "dataset": "rows",
    "unit": "row",
    "epsilon_limit": 11.0,
    "delta": 1e-5,
    "entries": [],
    "witnesses": [],
    "broken": "",
    "epsilon": 7.93,
    "accountant": "pld",
    "epsilon_pld": 7.93,
    "epsilon_rdp": 9.11,
}


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        (
            {},
            "epsilon 7.93 by pld of 11 at delta 1e-05; for comparison 7.93 by pld, 9.11 by rdp",
        ),
        (
            {"epsilon": 9.4, "accountant": "rdp"},
            "epsilon 9.40 by rdp of 11 at delta 1e-05; for comparison 7.93 by pld, 9.11 by rdp",
        ),
        (
            {"epsilon": None, "epsilon_pld": None, "epsilon_rdp": None},
            "epsilon infinite of 11 at delta 1e-05",
        ),
        ({"broken": "entry 3 is not signed"}, "BROKEN: entry 3 is not signed"),
    ],
    ids=["series", "rdp decides", "no guarantee", "broken"],
)
def test_caption_of_a_ledger(changes, caption):
    assert ledger_table(DOCUMENT | changes).caption == caption


@pytest.mark.parametrize(
    ("signature", "said"),
    [("5" * 128, "key 1111111111111111 to 2222222222222222"), (None, "1111 (lost) to 2222")],
    ids=["handed over", "lost"],
)
def test_change_of_keys_is_shown_with_both_keys_and_whether_one_was_lost(signature, said):
    entry = {
        "kind": "rotated",
        "old_key": "1" * 64,
        "new_key": "2" * 64,
        "old_signature": signature,
    }

    assert said in recovery_text(entry)
