"""Whether answers agree with what a case expects, within its tolerance; it sees no inputs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Case = Mapping[str, Any]

# Names in an expectation that are no answers of ours: context, other programs, bounds used below.
CONTEXT = frozenset(
    {
        "epsilon_high",
        "epsilon_low",
        "epsilon_max",
        "epsilon_min",
        "epsilon_pld_h1e-4",
        "epsilon_pld_h1e-5",
        "epsilon_rdp_opacus_orders",
        "epsilon_without_site_amplification",
        "or",
        "sum_of_each_at_delta",
        "true_high",
        "true_low",
        "wrong_product_rate_epsilon",
    }
)
# Answer, lower end, upper end: names of answers or of expectations, either end may be open.
RANGES = (
    ("epsilon_pld", "epsilon_min", "epsilon_max"),
    ("epsilon_two_level", "epsilon_low", "epsilon_without_site_amplification"),
    ("epsilon_composed", None, "sum_of_each_at_delta"),
    ("epsilon_kept_pld", None, "target_epsilon"),
    ("epsilon_kept_rdp", None, "target_epsilon"),
    ("delta_rdp", "delta_pld", None),
)
NEVER_BELOW = ("epsilon_pld", "epsilon_rdp")
# Looser is sound; only more than the expected value is a fault.
AT_MOST = frozenset({"delta_rdp"})
# Expected values are printed with this many digits.
PRINTED = 1e-5


def faults(answers: Any, case: Case) -> list[str]:
    """Return what differs, in words; empty where all agree."""
    if "expected" in case:
        return list(_tensor_faults(answers, case["expected"], case["abs_tol"]))
    expect, tolerance = case["expect"], case["tolerance"]
    found = [*_range_faults(answers, expect), *_low_faults(answers, expect)]
    compared = len(set(expect) & {low for _, low, _ in RANGES})
    for name in sorted(set(expect) - CONTEXT):
        if "epsilon_min" in expect and name.startswith("epsilon_"):
            continue
        compared += 1
        found += _value_faults(name, answers, expect[name], tolerance)
    return found if compared else ["nothing is expected that could be compared"]


def _value_faults(name: str, answers: Any, expected: Any, tolerance: Any) -> list[str]:
    if name == "epsilon" and name not in answers:
        name = "epsilon_pld"
    if name not in answers:
        return [f"{name} is expected, and no answer has that name"]
    got = answers[name]
    if isinstance(expected, Mapping):
        if set(got) != set(expected):
            return [f"{name} is about {sorted(got)}, expected {sorted(expected)}"]
        pairs = [(f"{name} of {key}", got[key], expected[key]) for key in sorted(expected)]
    else:
        pairs = [(name, got, expected)]
    accountant = "rdp" if name.endswith("rdp") else "pld"
    rel = tolerance.get(f"{accountant}_rel", tolerance.get("rel", PRINTED))
    if name in AT_MOST:
        rel = max(rel, tolerance.get("pld_rel", 0.0))
    least = tolerance.get(f"{accountant}_abs", tolerance.get("abs", 0.0))
    return [
        f"{what} is {value:.6g}, expected {wanted:.6g}"
        for what, value, wanted in pairs
        if not (_is_near(value, wanted, rel, least) or (name in AT_MOST and value < wanted))
    ]


def _is_near(got: float, expected: float, rel: float, least: float) -> bool:
    if math.isinf(expected) or math.isinf(got):
        return got == expected
    return abs(got - expected) <= max(rel * abs(expected), least)


def _range_faults(answers: Any, expect: Any) -> list[str]:
    known = {**expect, **answers}
    found = []
    for name, low, high in RANGES:
        if name not in answers:
            continue
        if low in known and answers[name] < known[low] * (1 - PRINTED):
            found.append(f"{name} is {answers[name]:.6g}, expected at least {known[low]:.6g}")
        # What an answer must keep is exact; what is printed in a file is rounded.
        allowed = 0.0 if high in answers else PRINTED
        if high in known and not answers[name] <= known[high] * (1 + allowed):
            found.append(f"{name} is {answers[name]:.6g}, expected at most {known[high]:.6g}")
    return found


def _low_faults(answers: Any, expect: Any) -> list[str]:
    low = expect.get("true_low", 0.0)
    return [
        f"{name} is {answers[name]:.6g}, which is under the true one, at least {low:.6g}"
        for name in NEVER_BELOW
        if not answers.get(name, math.inf) >= low
    ]


def _tensor_faults(got: Any, expected: Any, abs_tol: float) -> list[str]:
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            return [f"names differ: {sorted(got)}, expected {sorted(expected)}"]
        return [
            fault
            for name in expected
            for fault in _tensor_faults(got[name], expected[name], abs_tol)
        ]
    found, wanted = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=abs_tol):
        return [f"gave {found.tolist()}, expected {wanted.tolist()}"]
    return []
