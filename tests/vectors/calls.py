"""What each kind of case asks of fl_core, in fl_core's own names; nothing is worked out here.

A call takes a case's inputs and returns answers under the names that expectations use. It sees no
expectation, and does no arithmetic: a number in an answer came out of a public function of fl_core.
``tests/architecture/test_vectors_translate.py`` checks both.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fl_core.adapters.algebra import mean_of_products, product_of_means, scaling_of
from fl_core.adapters.pair import LoraPair
from fl_core.aggregation.aggregator import AGGREGATORS, Member, member_order
from fl_core.aggregation.mean import mean_present, weighted_metric
from fl_core.campaign.components import ComponentSpec
from fl_core.privacy.accounting import delta_of, epsilon, tuning_epsilon
from fl_core.privacy.auditing import audit_lower_bound
from fl_core.privacy.calibration import calibrate_noise_multiplier
from fl_core.privacy.clipping import adaptive_clip_noise
from fl_core.privacy.composition import federation_epsilon, site_epsilons, visits_event
from fl_core.privacy.events import (
    dpsgd_event,
    gaussian_event,
    repeated,
    sampling_rate_of,
    without_replacement_event,
)
from fl_core.privacy.gaussian_curve import gaussian_epsilon, gaussian_sigma
from fl_core.updates.records import EventRecord

Inputs = Mapping[str, Any]
Call = Callable[[Inputs], Any]

ACCOUNTANTS = ("pld", "rdp")
SHAPES = {"poisson": "inf", "geometric": "1", "logarithmic": "0"}


def _segment(inputs: Inputs) -> EventRecord:
    return dpsgd_event(
        noise_multiplier=inputs["noise_multiplier"],
        sampling_rate=inputs["sampling_rate"],
        steps=inputs["steps"],
    )


def _epsilons(events: list[EventRecord], inputs: Inputs) -> dict[str, float]:
    adjacency = inputs.get("neighbouring", "add_remove")
    delta = inputs["delta"]
    return {
        f"epsilon_{name}": epsilon(events, delta=delta, accountant=name, adjacency=adjacency)
        for name in ACCOUNTANTS
    }


def dpsgd_epsilon(inputs: Inputs) -> Any:
    return _epsilons([_segment(inputs)], inputs)


def schedule_epsilon(inputs: Inputs) -> Any:
    return _epsilons([_segment(segment) for segment in inputs["segments"]], inputs)


def dpsgd_delta(inputs: Inputs) -> Any:
    events = [_segment(inputs)]
    return {
        f"delta_{name}": delta_of(events, epsilon=inputs["epsilon"], accountant=name)
        for name in ACCOUNTANTS
    }


def gaussian_release_epsilon(inputs: Inputs) -> Any:
    return {"epsilon": gaussian_epsilon(**inputs)}


def gaussian_release_sigma(inputs: Inputs) -> Any:
    return {"sigma": gaussian_sigma(**inputs)}


def calibrate_noise(inputs: Inputs) -> Any:
    answers = {"target_epsilon": inputs["target_epsilon"]}
    for name in ACCOUNTANTS:
        noise = calibrate_noise_multiplier(
            epsilon=inputs["target_epsilon"],
            delta=inputs["delta"],
            sampling_rate=inputs["sampling_rate"],
            steps=inputs["steps"],
            accountant=name,
        )
        event = dpsgd_event(
            noise_multiplier=noise, sampling_rate=inputs["sampling_rate"], steps=inputs["steps"]
        )
        answers[f"noise_multiplier_{name}"] = noise
        answers[f"epsilon_kept_{name}"] = epsilon([event], delta=inputs["delta"], accountant=name)
    return answers


def client_epsilon(inputs: Inputs) -> Any:
    match inputs["sampling"]:
        case "poisson":
            return _epsilons([_drawn_clients(inputs)], inputs)
        case "all":
            noise, rounds = inputs["noise_multiplier"], inputs["rounds"]
            return _epsilons([gaussian_event(noise_multiplier=noise, rounds=rounds)], inputs)
        case "fixed_size_without_replacement":
            event = without_replacement_event(
                noise_multiplier=inputs["noise_multiplier"],
                sample_size=inputs["clients_per_round"],
                population=inputs["clients"],
                rounds=inputs["rounds"],
            )
            spent = epsilon(
                [event],
                delta=inputs["delta"],
                accountant="rdp",
                adjacency=inputs["neighbouring"],
            )
            return {"epsilon_rdp": spent}
    raise KeyError(inputs["sampling"])


def _drawn_clients(inputs: Inputs) -> EventRecord:
    rate = sampling_rate_of(
        expected=inputs["expected_clients_per_round"], population=inputs["clients"]
    )
    return dpsgd_event(
        noise_multiplier=inputs["noise_multiplier"], sampling_rate=rate, steps=inputs["rounds"]
    )


def relation_pair(inputs: Inputs) -> Any:
    every = {"all": gaussian_event}[inputs["sampling"]]
    events = [every(noise_multiplier=inputs["noise_multiplier"], rounds=inputs["rounds"])]
    return {
        f"epsilon_{adjacency}": epsilon(events, delta=inputs["delta"], adjacency=adjacency)
        for adjacency in ("add_remove", "replace_one")
    }


def federation_record_epsilon(inputs: Inputs) -> Any:
    events = {site["site"]: [_site_event(site)] for site in inputs["sites"]}
    return {
        "per_site_pld": site_epsilons(events, delta=inputs["delta"]),
        "federation": federation_epsilon(events, delta=inputs["delta"]),
    }


def _site_event(site: Inputs) -> EventRecord:
    rate = sampling_rate_of(expected=site["expected_batch"], population=site["records"])
    visit = dpsgd_event(
        noise_multiplier=site["noise_multiplier"], sampling_rate=rate, steps=site["local_steps"]
    )
    return repeated(visit, site["rounds_joined"])


def adaptive_clip(inputs: Inputs) -> Any:
    return {"noise_multiplier_update": adaptive_clip_noise(**inputs)}


def tuning(inputs: Inputs) -> Any:
    run, delta, trials = _segment(inputs), inputs["delta"], inputs["expected_trials"]
    named = inputs["trials_distribution"]
    shape = float(SHAPES.get(named, named.removeprefix("truncated_negative_binomial shape ")))
    return {
        "epsilon_one_run_rdp": epsilon([run], delta=delta, accountant="rdp"),
        "epsilon_select_best_rdp": tuning_epsilon(
            [run], delta=delta, expected_trials=trials, shape=shape
        ),
        "epsilon_compose_trials_rdp": epsilon(
            [repeated(run, trials)], delta=delta, accountant="rdp"
        ),
    }


def two_level_sampling_epsilon(inputs: Inputs) -> Any:
    event = visits_event(
        site_sampling_rate=inputs["site_sampling_rate"],
        noise_multiplier=inputs["noise_multiplier"],
        sampling_rate=inputs["record_sampling_rate"],
        steps=inputs["steps_per_visit"],
        rounds=inputs["rounds"],
    )
    return {"epsilon_two_level": epsilon([event], delta=inputs["delta"])}


def audit(inputs: Inputs) -> Any:
    return {"epsilon_lower_bound": audit_lower_bound(**inputs)}


def inequality(inputs: Inputs) -> Any:
    a, b = _segment(inputs["a"]), _segment(inputs["b"])
    return {
        "epsilon_each": epsilon([a], delta=inputs["delta"]),
        "epsilon_composed": epsilon([a, b], delta=inputs["delta"]),
    }


def _tensors(client: Inputs) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=np.float32) for name, value in client["w"].items()}


def weighted_mean(inputs: Inputs) -> Any:
    clients = {f"site-{number:04d}": c for number, c in enumerate(inputs["clients"])}
    members = [Member(site=site, tensors=_tensors(c)) for site, c in clients.items()]
    weights = {site: c["n"] for site, c in clients.items()}
    rule = AGGREGATORS.build(ComponentSpec(kind="mean"))
    return rule.aggregate(member_order(members), weights, None).tensors


def weighted_mean_missing_keys(inputs: Inputs) -> Any:
    clients = inputs["clients"]
    return mean_present([_tensors(c) for c in clients], [c["n"] for c in clients])


def metric(inputs: Inputs) -> Any:
    return weighted_metric(inputs["values"], inputs["n"])


def _pairs(inputs: Inputs) -> tuple[list[LoraPair], list[float]]:
    clients = inputs["clients"]
    return [_pair(client) for client in clients], [client["weight"] for client in clients]


def _pair(client: Inputs) -> LoraPair:
    scaling = scaling_of(
        alpha=client.get("alpha"),
        rank=len(client["A"]),
        rank_stabilized=client.get("rslora", False),
    )
    a, b = (np.asarray(client[name], dtype=np.float32) for name in ("A", "B"))
    return LoraPair(a=a, b=b, scaling=scaling)


def lora_mean_of_products(inputs: Inputs) -> Any:
    return mean_of_products(*_pairs(inputs))


def lora_product_of_means(inputs: Inputs) -> Any:
    return product_of_means(*_pairs(inputs))


def ffa_shared_a(inputs: Inputs) -> Any:
    return {
        "mean_of_products": lora_mean_of_products(inputs),
        "product_of_means": lora_product_of_means(inputs),
    }


CALLS: Mapping[str, Call] = {
    "adaptive_clip_noise": adaptive_clip,
    "audit_lower_bound": audit,
    "calibrate_noise": calibrate_noise,
    "client_epsilon": client_epsilon,
    "dpsgd_delta": dpsgd_delta,
    "dpsgd_epsilon": dpsgd_epsilon,
    "federation_record_epsilon": federation_record_epsilon,
    "ffa_shared_A": ffa_shared_a,
    "gaussian_epsilon": gaussian_release_epsilon,
    "gaussian_sigma": gaussian_release_sigma,
    "inequality": inequality,
    "lora_mean_of_products": lora_mean_of_products,
    "lora_product_of_means": lora_product_of_means,
    "lora_scaled_mean_of_products": lora_mean_of_products,
    "relation_pair": relation_pair,
    "schedule_epsilon": schedule_epsilon,
    "tuning_epsilon": tuning,
    "two_level_sampling_epsilon": two_level_sampling_epsilon,
    "weighted_mean": weighted_mean,
    "weighted_mean_missing_keys": weighted_mean_missing_keys,
    "weighted_metric": metric,
}

# Kinds of parts that fl_core does not have yet; one that is in neither list fails the run.
LATER = frozenset(
    {
        "adaptive_clip_step",
        "bulyan",
        "clip_mean",
        "clip_sum",
        "distributed_discrete_gaussian",
        "dropout_noise",
        "fedadagrad",
        "fedadam",
        "fedavgm",
        "fedex_residual",
        "fedyogi",
        "flexlora_svd",
        "flora_stack",
        "hetero_replicate",
        "hetero_zero_pad",
        "hetlora_weights",
        "krum",
        "mean_of_n_closest",
        "median",
        "modular_clip_sum",
        "multi_krum",
        "qfedavg",
        "scaffold_server",
        "secure_modular_sum",
        "secure_sum_bounded",
        "signed_permutation",
        "skellam_sum",
        "trimmed_mean",
        "zero_mean",
        "zero_sum",
    }
)
