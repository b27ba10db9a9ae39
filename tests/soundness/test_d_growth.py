"""SOUNDNESS, rules 5 and 20: growth of the data changes nothing that leaves before a new campaign.

Whole simulated rounds, once on few rows and once on ten times as many, and everything that is in
the store afterwards: the same names, the same sizes, the same numbers. What remains are noised
tensors, their hashes and signatures, times, and figures on the public holdout.
"""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, locked_spec, take, tiny_base, tiny_rows, word_tokenizer
from worlds import PASSED, campaign_of

from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import assemble
from fl_core.rounds import site_update
from fl_core.simulation import Setting, SimulatedSite, simulate

torch.set_num_threads(1)
SITES = ("a", "b")
RECORD = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": 1.0,
    "sampling_rate": 0.5,
    "noise_multiplier": 3.0,
}
PEOPLE = RECORD | {"unit": "patient_id", "max_rows_per_unit": 2}
# Made of noised tensors, of keys or of the clock.
MADE = re.compile(r'"[0-9a-f]{64}"|"[0-9a-f]{128}"|"\d{4}-\d\d-\d\dT[^"]*"|/[0-9a-f]{64}/')
ON_HOLDOUT = {"evaluation.json"}
TENSORS = ".safetensors"


@pytest.fixture(scope="module")
def base():
    return dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())


def objects_after(base, record, rows):
    """Return what one round leaves in the store, with what is made of noise or time taken out."""
    spec = locked_spec(base, CLASSES, targets=("query", "value"))
    campaign = campaign_of(
        SITES,
        max_rounds=1,
        task=CLASSES.model_dump(),
        adapter=spec.model_dump(),
        training={"local_steps": 2, "batch_size": 3.0, "learning_rate": 0.1, "micro_batch": 4},
        privacy={"record": record},
    )
    sites = {name: SimulatedSite(rows, PASSED) for name in SITES}
    store = MemoryStore()
    setting = Setting(campaign=campaign, base=base, sites=sites, holdout=tiny_rows(CLASSES, 5))
    (status,) = simulate(setting, store=store)
    assert status.outcome.status == "released"
    return {MADE.sub("/", key): shape_of(key, store.get(key)) for key in store.list("")}


def shape_of(key, data):
    if key.endswith(TENSORS):
        return len(data)
    if key.rpartition("/")[2] in ON_HOLDOUT:
        return sorted(json.loads(data))
    return MADE.sub('"made"', data.decode())


@pytest.mark.parametrize("record", [RECORD, PEOPLE], ids=["rows", "people"])
def test_rule_05_ten_times_the_rows_change_no_number_that_leaves(base, record):
    few = tiny_rows(CLASSES, 6)
    many = take(few, np.repeat(np.arange(6), 10))
    if record is PEOPLE:
        # As many people in both, with one row each and with ten.
        few = dataclasses.replace(few, units=np.arange(6))
        many = dataclasses.replace(many, units=np.repeat(np.arange(6), 10))

    before, after = objects_after(base, record, few), objects_after(base, record, many)

    assert sorted(before) == sorted(after)
    for key, content in before.items():
        assert after[key] == content, key
    assert any(key.endswith("manifest.json") for key in before)
    assert any(key.endswith("budget.json") for key in before)


def test_rule_05_a_count_that_did_leave_would_be_found(base, monkeypatch):
    monkeypatch.setattr(site_update, "version", lambda _: f"planted {n_rows}")
    n_rows = 6
    before = objects_after(base, RECORD, tiny_rows(CLASSES, n_rows))
    n_rows = 60
    after = objects_after(base, RECORD, tiny_rows(CLASSES, n_rows))

    assert before != after


def test_rule_05_noise_divisor_and_event_are_fixed_with_the_campaign(base):
    one = assemble(campaign_of())

    # Whatever a site holds, these come from the frozen campaign alone.
    assert one.noise == assemble(one.campaign).noise
    assert one.campaign.training.divisor("a") == 16
