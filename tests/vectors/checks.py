"""One check per kind of case: None if fl_core gives the known answer, else what it gave."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fl_core.adapters.algebra import mean_of_products, product_of_means
from fl_core.adapters.pair import LoraPair
from fl_core.aggregation.aggregator import AGGREGATORS, Member, member_order
from fl_core.aggregation.mean import mean_present, weighted_metric
from fl_core.campaign.components import ComponentSpec
from fl_core.errors import FedloomError
from fl_core.privacy.accounting import delta_of, epsilon
from fl_core.privacy.calibration import (
    calibrate_noise_multiplier,
    gaussian_epsilon,
    gaussian_sigma,
)
from fl_core.privacy.events import dpsgd_event

Case = Mapping[str, Any]
Check = Callable[[Case], str | None]


def kind_of(case: Case) -> str:
    """Return the kind or op; an error case is named after the function that must refuse."""
    kind: str = case.get("kind") or case["op"]
    return f"error {case['inputs']['function']}" if kind == "error" else kind


def _number(value: object) -> float:
    return float(value) if isinstance(value, str) else value  # type: ignore[return-value]


def _near(name: str, got: float, expected: object, *, rel: float = 0, at_least: float = 0) -> str:
    wanted = _number(expected)
    if got == wanted or abs(got - wanted) <= max(rel * abs(wanted), at_least):
        return ""
    return f"{name} is {got:.6g}, expected {wanted:.6g}"


def _events(case: Case) -> list[Any]:
    segments = case["inputs"].get("segments", [case["inputs"]])
    names = ("noise_multiplier", "sampling_rate", "steps")
    return [dpsgd_event(**{name: segment[name] for name in names}) for segment in segments]


def check_epsilon(case: Case) -> str | None:
    expect, tolerance = case["expect"], case["tolerance"]
    delta = case["inputs"]["delta"]
    if expect.get("or") == "error":
        return _refusal_or(case, expect["epsilon"])
    events = _events(case)
    pld, rdp = (epsilon(events, delta=delta, accountant=a) for a in ("pld", "rdp"))
    faults = []
    if "epsilon" in expect:
        faults.append(_near("pld epsilon", pld, expect["epsilon"], at_least=tolerance["abs"]))
    if "epsilon_pld" in expect:
        rel, least = tolerance["pld_rel"], tolerance["pld_abs"]
        faults.append(_near("pld epsilon", pld, expect["epsilon_pld"], rel=rel, at_least=least))
    if "rdp_rel" in tolerance:
        faults.append(_near("rdp epsilon", rdp, expect["epsilon_rdp"], rel=tolerance["rdp_rel"]))
    if "epsilon_min" in expect and not expect["epsilon_min"] <= pld <= expect["epsilon_max"]:
        faults.append(f"pld epsilon {pld:.6g} outside {expect['epsilon_min']}..")
    if min(pld, rdp) < expect.get("true_low", 0):
        faults.append(
            f"epsilon {min(pld, rdp):.6g} is under the true one, at least {expect['true_low']}"
        )
    return "; ".join(filter(None, faults)) or None


def _refusal_or(case: Case, expected: object) -> str | None:
    try:
        got = epsilon(_events(case), delta=case["inputs"]["delta"])
    except FedloomError:
        return None
    return _near("pld epsilon", got, expected) or None


def check_refused(case: Case) -> str | None:
    inputs = {k: _number(v) for k, v in case["inputs"].items() if k != "function"}
    try:
        got = epsilon(_events({"inputs": inputs}), delta=inputs["delta"])
    except FedloomError:
        return None
    return f"gave {got}, expected a named error"


def check_delta(case: Case) -> str | None:
    wanted = case["inputs"]["epsilon"]
    pld, rdp = (delta_of(_events(case), epsilon=wanted, accountant=a) for a in ("pld", "rdp"))
    rel = case["tolerance"]["pld_rel"]
    faults = [_near("pld delta", pld, case["expect"]["delta_pld"], rel=rel)]
    if not pld <= rdp <= case["expect"]["delta_rdp"] * (1 + rel):
        faults.append(f"rdp delta is {rdp:.6g}, expected at most {case['expect']['delta_rdp']}")
    return "; ".join(filter(None, faults)) or None


def check_gaussian_epsilon(case: Case) -> str | None:
    got = gaussian_epsilon(**case["inputs"])
    return _near("epsilon", got, case["expect"]["epsilon"], rel=case["tolerance"]["rel"]) or None


def check_gaussian_sigma(case: Case) -> str | None:
    got = gaussian_sigma(**case["inputs"])
    return _near("sigma", got, case["expect"]["sigma"], rel=case["tolerance"]["rel"]) or None


def check_calibration(case: Case) -> str | None:
    inputs = dict(case["inputs"])
    target = inputs.pop("target_epsilon")
    faults = []
    for accountant in ("pld", "rdp"):
        z = calibrate_noise_multiplier(epsilon=target, accountant=accountant, **inputs)
        wanted = case["expect"][f"noise_multiplier_{accountant}"]
        faults.append(_near(f"{accountant} noise", z, wanted, rel=case["tolerance"]["rel"]))
        events = _events({"inputs": {**inputs, "noise_multiplier": z}})
        after = epsilon(events, delta=inputs["delta"], accountant=accountant)
        faults.append(f"{accountant} epsilon {after} is above its target" if after > target else "")
    return "; ".join(filter(None, faults)) or None


def _equal(got: object, case: Case, expected: object) -> str | None:
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            return f"names differ: {got!r}"
        faults = [_equal(got[name], case, expected[name]) for name in sorted(expected)]
        return next(filter(None, faults), None)
    found, wanted = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=case["abs_tol"]):
        return f"gave {found.tolist()}, expected {wanted.tolist()}"
    return None


def _tensors(client: Case) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=np.float32) for name, value in client["w"].items()}


def check_mean(case: Case) -> str | None:
    clients = {f"site-{i:02d}": c for i, c in enumerate(case["inputs"]["clients"])}
    members = [Member(site=site, tensors=_tensors(c)) for site, c in clients.items()]
    weights = {site: c["n"] for site, c in clients.items()}
    rule = AGGREGATORS.build(ComponentSpec(kind="mean"))
    return _equal(
        rule.aggregate(member_order(members), weights, None).tensors, case, case["expected"]
    )


def check_missing_keys(case: Case) -> str | None:
    clients = case["inputs"]["clients"]
    got = mean_present([_tensors(c) for c in clients], [c["n"] for c in clients])
    return _equal(got, case, case["expected"])


def check_metric(case: Case) -> str | None:
    got = weighted_metric(case["inputs"]["values"], case["inputs"]["n"])
    return _equal(got, case, case["expected"])


def _pairs(case: Case) -> tuple[list[LoraPair], list[float]]:
    pairs, weights = [], []
    for client in case["inputs"]["clients"]:
        a, b = (np.asarray(client[name], dtype=np.float32) for name in ("A", "B"))
        root = math.sqrt(a.shape[0]) if client.get("rslora") else a.shape[0]
        scaling = client["alpha"] / root if "alpha" in client else 1.0
        pairs.append(LoraPair(a=a, b=b, scaling=scaling))
        weights.append(client["weight"])
    return pairs, weights


def check_mean_of_products(case: Case) -> str | None:
    return _equal(mean_of_products(*_pairs(case)), case, case["expected"])


def check_product_of_means(case: Case) -> str | None:
    return _equal(product_of_means(*_pairs(case)), case, case["expected"])


def check_ffa(case: Case) -> str | None:
    pairs, weights = _pairs(case)
    got = {
        "mean_of_products": mean_of_products(pairs, weights),
        "product_of_means": product_of_means(pairs, weights),
    }
    return _equal(got, case, case["expected"])


CHECKS: Mapping[str, Check] = {
    "dpsgd_epsilon": check_epsilon,
    "schedule_epsilon": check_epsilon,
    "dpsgd_delta": check_delta,
    "gaussian_epsilon": check_gaussian_epsilon,
    "gaussian_sigma": check_gaussian_sigma,
    "calibrate_noise": check_calibration,
    "error dpsgd_epsilon": check_refused,
    "weighted_mean": check_mean,
    "weighted_mean_missing_keys": check_missing_keys,
    "weighted_metric": check_metric,
    "lora_mean_of_products": check_mean_of_products,
    "lora_scaled_mean_of_products": check_mean_of_products,
    "lora_product_of_means": check_product_of_means,
    "ffa_shared_A": check_ffa,
}
