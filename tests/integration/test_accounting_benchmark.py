"""The benchmark of accounting runs, and finds what is slow or grows; no time is asserted here."""

import json

from benchmarks.accounting import QUESTIONS, ROUNDS, broken_limits, ledgers, main, measure

FLAT = {question: dict.fromkeys(ROUNDS, 0.05) for question in QUESTIONS}


def test_every_question_is_measured_at_every_number_of_rounds(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accounting", "--repeats", "1", "--json"])

    main()

    figures = json.loads(capsys.readouterr().out)["seconds"]
    assert list(figures) == [ledger.name for ledger in ledgers()]
    for questions in figures.values():
        assert list(questions) == list(QUESTIONS)
        for times in questions.values():
            assert list(times) == [str(rounds) for rounds in ROUNDS]
            assert all(seconds >= 0 for seconds in times.values())


def test_what_is_slow_or_grows_with_the_rounds_is_named():
    slow = FLAT | {"live": dict.fromkeys(ROUNDS, 0.2)}
    grows = FLAT | {"verdict": {10: 0.05, 100: 0.1, 1000: 0.2}}

    assert broken_limits({"a": FLAT}) == []
    assert "live takes 0.200 s" in broken_limits({"a": slow})[0]
    assert "verdict grows" in broken_limits({"a": grows})[0]


def test_each_ledger_is_decided_by_the_accountant_it_is_named_after():
    from fl_core.privacy.budget import spend

    decided = {x.name: spend(x.policy, x.events(3)).accountant for x in ledgers()}

    assert all(name.lower().endswith(accountant) for name, accountant in decided.items())
    assert len(set(decided.values())) == 3
    assert measure(ledgers()[2], 1)["live"][1000] >= 0
