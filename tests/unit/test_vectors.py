"""Every known answer of tests/vectors that fl_core should give, and the runner that asks."""

import json
from pathlib import Path

import pytest

from tests.vectors.__main__ import main
from tests.vectors.calls import CALLS, LATER
from tests.vectors.checks import answers_of, fault_of, kind_of, read_cases
from tests.vectors.compare import AT_MOST, CONTEXT, faults

FOLDER = Path(__file__).parents[1] / "vectors"
CASES = [case for path in sorted(FOLDER.glob("*.json")) for case in read_cases(path)]
KNOWN = [case for case in CASES if kind_of(case) in CALLS]
# Of the privacy file these alone belong to parts that do not exist yet.
LATER_PRIVACY = {"distributed_discrete_gaussian", "skellam_sum", "dropout_noise"}


@pytest.mark.parametrize("case", KNOWN, ids=[case["id"] for case in KNOWN])
def test_known_answer_is_given(case):
    fault = fault_of(case)

    assert fault is None


def test_every_case_of_the_privacy_file_is_asked_but_those_of_later_parts():
    kinds = {kind_of(case) for case in read_cases(FOLDER / "privacy.json")}

    assert kinds - set(CALLS) == LATER_PRIVACY


def test_no_kind_is_both_known_and_for_later():
    assert {kind_of(case) for case in CASES} <= set(CALLS) | LATER
    assert not set(CALLS) & LATER


def _shifted(value):
    return (
        {name: _shifted(item) for name, item in value.items()}
        if isinstance(value, dict)
        else (value * 1.05 + 0.05)
    )


QUICK = [
    case
    for case in KNOWN
    if kind_of(case)
    in {
        "adaptive_clip_noise",
        "audit_lower_bound",
        "dpsgd_delta",
        "federation_record_epsilon",
        "gaussian_epsilon",
        "gaussian_sigma",
        "inequality",
        "relation_pair",
        "tuning_epsilon",
    }
    and "error" not in case["expect"]
]


@pytest.mark.parametrize("case", QUICK, ids=[case["id"] for case in QUICK])
def test_every_expected_number_is_compared(case):
    answers = answers_of(case)
    names = set(case["expect"]) - CONTEXT - AT_MOST

    missed = [
        name
        for name in sorted(names)
        if not faults(
            answers, case | {"expect": case["expect"] | {name: _shifted(case["expect"][name])}}
        )
    ]

    assert names
    assert missed == []


DPSGD = {"kind": "dpsgd_epsilon", "tolerance": {"pld_rel": 0.005, "pld_abs": 0.01, "rdp_rel": 2e-3}}


@pytest.mark.parametrize(
    ("answers", "expect", "words"),
    [
        ({"epsilon_pld": 1.02, "epsilon_rdp": 2.0}, {"epsilon_pld": 1.0}, "expected 1"),
        ({"epsilon_pld": 1.0, "epsilon_rdp": 2.01}, {"epsilon_rdp": 2.0}, "expected 2"),
        ({"epsilon_pld": 0.999, "epsilon_rdp": 2.0}, {"epsilon_pld": 1.0, "true_low": 1.0}, "true"),
        ({"epsilon_pld": 2.5}, {"epsilon_min": 1.0, "epsilon_max": 2.0}, "at most 2"),
        ({"epsilon_pld": 0.5}, {"epsilon_min": 1.0, "epsilon_max": 2.0}, "at least 1"),
        ({"epsilon_pld": float("nan")}, {"epsilon_pld": 1.0}, "nan"),
        ({"epsilon_pld": 700.0}, {"epsilon": float("inf")}, "expected inf"),
        ({"epsilon_pld": 1.0}, {"epsilon_prv": 1.0}, "no answer has that name"),
        ({"epsilon_pld": 1.0}, {"true_high": 1.0}, "nothing is expected"),
        ({"epsilon_two_level": 2.4}, {"epsilon_low": 3.4574}, "at least 3.4574"),
        (
            {"epsilon_kept_pld": 8.000001, "target_epsilon": 8.0, "noise_multiplier_pld": 1.0},
            {"noise_multiplier_pld": 1.0},
            "at most 8",
        ),
    ],
)
def test_answer_outside_its_tolerance_is_a_fault(answers, expect, words):
    found = faults(answers, DPSGD | {"expect": expect})

    assert any(words in line for line in found)


def _file(tmp_path, *, schema="fedloom-privacy-vectors/1", **changes):
    case = {
        "id": "one release",
        "kind": "gaussian_sigma",
        "inputs": {"epsilon": 1.0, "delta": 1e-05, "sensitivity": 1.0},
        "expect": {"sigma": 3.730632},
        "tolerance": {"rel": 1e-4},
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"schema": schema, "cases": [case | changes]}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "code", "summary"),
    [
        ({}, 0, "1 passed, 0 failed, 0 unknown"),
        ({"expect": {"sigma": 3.74}}, 1, "0 passed, 1 failed, 0 unknown"),
        ({"kind": "skellam_sum"}, 0, "0 passed, 0 failed, 1 unknown"),
        ({"kind": "gaussian_sigmas"}, 1, "0 passed, 0 failed, 1 unknown"),
        ({"inputs": {"epsilon": 0.0, "delta": 1e-5, "sensitivity": 1.0}}, 1, "0 passed, 1 failed"),
        ({"inputs": {"epsilon": 1.0, "delta": 1e-5, "width": 1.0}}, 1, "0 passed, 1 failed"),
        (
            {
                "kind": "error",
                "inputs": {"function": "gaussian_sigma", "epsilon": "nan", "delta": 0.1}
                | {"sensitivity": 1.0},
                "expect": {"error": True},
            },
            0,
            "1 passed, 0 failed, 0 unknown",
        ),
        (
            {
                "kind": "error",
                "inputs": {"function": "gaussian_sigma", "epsilon": 1.0, "delta": 0.1}
                | {"sensitivity": 1.0},
                "expect": {"error": True},
            },
            1,
            "0 passed, 1 failed, 0 unknown",
        ),
    ],
    ids=[
        "right",
        "wrong",
        "later",
        "misspelt kind",
        "refused",
        "misspelt input",
        "must",
        "did not",
    ],
)
def test_runner_counts_and_fails_on(changes, code, summary, tmp_path, capsys):
    result = main([_file(tmp_path, **changes)])

    assert result == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(summary)


def test_file_of_another_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="schema"):
        main([_file(tmp_path, schema="other")])
