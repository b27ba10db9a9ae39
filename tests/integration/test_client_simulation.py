"""Whole sites protected, through simulated campaigns: real training on a tiny model."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, locked_spec, tiny_base, tiny_rows, word_tokenizer
from worlds import PASSED, campaign_of

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.memory import MemoryStore
from fl_core.artifacts.store import is_buried
from fl_core.campaign.campaign import Campaign
from fl_core.models.loading import LoadedBase
from fl_core.privacy.forecast import client_epsilon_after
from fl_core.rounds.documents import RoundCharge
from fl_core.rounds.released_delta import read_release
from fl_core.rounds.status import RoundStatus
from fl_core.simulation import Setting, SimulatedSite, simulate
from fl_core.updates.payload import PayloadLimits, decode_tensors

torch.set_num_threads(1)
SITES = ("a", "b", "c")
CLIENT = {"epsilon": 60.0, "delta": 1e-3, "clip_norm": 0.01, "noise_multiplier": 2.0}
RECORD = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 1.0,
    "sampling_rate": 0.5,
    "noise_multiplier": 3.0,
}
# Two-sided standard normal quantile at a false alarm rate of 1e-6.
Z = 4.892


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())


def campaign(
    base: LoadedBase, mechanism: str, *, record: bool = False, **client: float
) -> Campaign:
    privacy = {"client": CLIENT | {"mechanism": mechanism} | client}
    return campaign_of(
        SITES,
        task=CLASSES,
        adapter=locked_spec(base, CLASSES),
        training={"local_steps": 3, "batch_size": 8, "learning_rate": 0.5, "micro_batch": 8},
        privacy=privacy | ({"record": RECORD} if record else {}),
        max_rounds=2,
    )


def run(
    base: LoadedBase, what: Campaign, *, seed: int | None = 1
) -> tuple[MemoryStore, list[RoundStatus]]:
    store = MemoryStore()
    sites = {
        name: SimulatedSite(rows=tiny_rows(CLASSES, 12, seed=n), gate=PASSED)
        for n, name in enumerate(what.sites)
    }
    setting = Setting(what, base, sites, tiny_rows(CLASSES, 8, seed=9), seed=seed)
    return store, list(simulate(setting, store=store))


def flat(tensors: dict) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def upload(store: MemoryStore, what: Campaign, site: str) -> np.ndarray:
    data = store.get(keys.payload(what.id, 1, site))
    return flat(decode_tensors(data, limits=PayloadLimits(max_bytes=1 << 20)))


def require_noise(values: np.ndarray, *, stddev: float, signal: float) -> None:
    """Check a sample variance; ``signal`` is the largest norm of what the noise was added to."""
    n = len(values)
    measured = float(np.sum(values**2)) / n / stddev**2
    slack = Z * math.sqrt(2 / n) + (signal / stddev) ** 2 / n + 2 * Z * signal / stddev / n
    assert abs(measured - 1) < slack


@pytest.mark.parametrize("record", [False, True], ids=["alone", "with records"])
def test_central_campaign_charges_the_federation_and_keeps_no_raw_update(base, record):
    what = campaign(base, "gaussian", record=record)

    store, rounds = run(base, what)

    assert [r.outcome.status for r in rounds] == ["released", "released"]
    for number, status in enumerate(rounds, start=1):
        assert status.outcome.noise_stddev == pytest.approx(2.0 * 0.01 / 3)
        assert status.outcome.sensitivity == pytest.approx(0.01 / 3)
        assert status.federation.epsilon == pytest.approx(client_epsilon_after(what, number))
        assert sorted(status.budgets) == (list(SITES) if record else [])
        for site in SITES:
            assert is_buried(store, keys.payload(what.id, number, site))
    charge = read_document(store, keys.charge(what.id, 1), RoundCharge)
    assert charge.federation.event.noise_multiplier == 2.0
    assert sorted(charge.sites) == (list(SITES) if record else [])
    assert charge.clients == {}


def test_noise_of_a_central_release_is_that_of_its_event(base):
    what = campaign(base, "gaussian")

    store, rounds = run(base, what, seed=None)

    for number, status in enumerate(rounds, start=1):
        values = flat(read_release(store, what.id, number))
        require_noise(values, stddev=status.outcome.noise_stddev, signal=0.01)


@pytest.mark.parametrize("record", [False, True], ids=["alone", "with records"])
def test_local_campaign_charges_every_site_for_its_rows_and_as_a_whole(base, record):
    what = campaign(base, "local_gaussian", record=record)

    store, rounds = run(base, what)

    assert [r.outcome.status for r in rounds] == ["released", "released"]
    assert rounds[-1].federation is None
    charge = read_document(store, keys.charge(what.id, 2), RoundCharge)
    assert {c.event.noise_multiplier for c in charge.clients.values()} == {2.0}
    kinds = {c.event.kind for c in charge.sites.values()}
    assert kinds == ({"self_composed"} if record else {"gaussian"})
    for number, status in enumerate(rounds, start=1):
        for budget in status.budgets.values():
            assert budget.unit == "row"
            assert budget.client.accountant == "gdp"
            assert budget.client.epsilon == pytest.approx(client_epsilon_after(what, number))


def test_noise_of_every_local_update_is_that_of_its_charge_and_its_own(base):
    what = campaign(base, "local_gaussian")

    store, _ = run(base, what, seed=None)

    updates = {site: upload(store, what, site) for site in SITES}
    for values in updates.values():
        require_noise(values, stddev=0.02, signal=0.01)
    # The correlation of independent normals has standard deviation 1 / sqrt(n).
    n = len(updates["a"])
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        correlation = float(np.corrcoef(updates[one], updates[other])[0, 1])
        assert abs(correlation) < (Z + 1) / math.sqrt(n)


def test_seeded_simulation_repeats_both_kinds_of_noise(base):
    for mechanism in ("gaussian", "local_gaussian"):
        what = campaign(base, mechanism)
        first, second = (run(base, what, seed=7)[0] for _ in range(2))

        assert first.get(keys.release(what.id, 2)) == second.get(keys.release(what.id, 2))


def test_campaign_that_spends_exactly_its_budget_runs_to_its_end(base):
    open_noise = campaign(base, "gaussian", epsilon=8.0, noise_multiplier=0.67886)

    _, rounds = run(base, open_noise)

    assert [r.outcome.status for r in rounds] == ["released", "released"]
    assert rounds[-1].federation.rounds_left == 0
