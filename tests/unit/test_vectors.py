"""Every known answer of tests/vectors that fl_core should give already."""

import json
from pathlib import Path

import pytest

from tests.vectors.__main__ import main
from tests.vectors.checks import CHECKS, kind_of

FOLDER = Path(__file__).parents[1] / "vectors"
CASES = [
    case for path in sorted(FOLDER.glob("*.json")) for case in json.loads(path.read_text())["cases"]
]
# Kinds whose parts do not exist yet; a kind in neither list is misspelt.
NOT_YET = {
    "error adaptive_clip_noise",
    "adaptive_clip_noise",
    "adaptive_clip_step",
    "audit_lower_bound",
    "bulyan",
    "client_epsilon",
    "clip_mean",
    "clip_sum",
    "distributed_discrete_gaussian",
    "dropout_noise",
    "fedadagrad",
    "fedadam",
    "fedavgm",
    "federation_record_epsilon",
    "fedex_residual",
    "fedyogi",
    "flexlora_svd",
    "flora_stack",
    "hetero_replicate",
    "hetero_zero_pad",
    "hetlora_weights",
    "inequality",
    "krum",
    "mean_of_n_closest",
    "median",
    "modular_clip_sum",
    "multi_krum",
    "qfedavg",
    "relation_pair",
    "scaffold_server",
    "secure_modular_sum",
    "secure_sum_bounded",
    "signed_permutation",
    "skellam_sum",
    "trimmed_mean",
    "tuning_epsilon",
    "two_level_sampling_epsilon",
    "zero_mean",
    "zero_sum",
}
KNOWN = [case for case in CASES if kind_of(case) in CHECKS]


@pytest.mark.parametrize("case", KNOWN, ids=[case["id"] for case in KNOWN])
def test_known_answer_is_given(case):
    fault = CHECKS[kind_of(case)](case)

    assert fault is None


def test_every_kind_is_known_or_listed_as_not_yet():
    kinds = {kind_of(case) for case in CASES}

    assert kinds <= set(CHECKS) | NOT_YET
    assert not set(CHECKS) & NOT_YET


def _file(tmp_path, **changes):
    case = {
        "id": "half",
        "op": "weighted_metric",
        "inputs": {"values": [0.0, 1.0], "n": [1, 1]},
        "expected": 0.5,
        "abs_tol": 1e-6,
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": [case | changes]}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "code", "summary"),
    [
        ({}, 0, "1 passed, 0 failed, 0 unknown"),
        ({"expected": 0.6}, 1, "0 passed, 1 failed, 0 unknown"),
        ({"op": "median"}, 0, "0 passed, 0 failed, 1 unknown"),
        ({"inputs": {"values": [1.0], "n": [0]}}, 1, "0 passed, 1 failed, 0 unknown"),
    ],
    ids=["right", "wrong", "not yet", "refused"],
)
def test_runner_counts_and_fails_on(changes, code, summary, tmp_path, capsys):
    result = main([_file(tmp_path, **changes)])

    assert result == code
    assert capsys.readouterr().out.splitlines()[-1] == summary
