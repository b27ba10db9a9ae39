"""The choices of docs/clipping.md through whole simulated campaigns."""

import dataclasses
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_core.artifacts import keys
from fl_core.artifacts.memory import MemoryStore
from fl_core.assembly import assemble
from fl_core.campaign.guarantees import AdaptiveClip, GroupBounds
from fl_core.models.loading import LoadedBase
from fl_core.privacy.accounting import epsilon
from fl_core.simulation import Setting, SimulatedSite, simulate
from tests.tiny_models import CLASSES, locked_spec, tiny_base, tiny_rows, word_tokenizer
from tests.worlds import PASSED, campaign_of

torch.set_num_threads(1)
PAGE = Path(__file__).parents[2] / "docs" / "clipping.md"
SNIPPETS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
NUMBERS = {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5, "noise_multiplier": 3.0}


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return dataclasses.replace(tiny_base(CLASSES), tokenizer=word_tokenizer())


def campaign(base: LoadedBase, snippet: str, *, rule: str = "lora", **record):
    stated = tomllib.loads(snippet)["privacy"]["record"]
    return campaign_of(
        ("a", "b"),
        task=CLASSES,
        adapter=locked_spec(base, CLASSES, rule=rule),
        training={"local_steps": 2, "batch_size": 8, "learning_rate": 0.1, "micro_batch": 4},
        privacy={"record": NUMBERS | stated | record},
        max_rounds=3,
    )


def run(base: LoadedBase, what, *, units=None):
    store = MemoryStore()
    rows = {name: tiny_rows(CLASSES, 12, seed=n) for n, name in enumerate(what.sites)}
    sites = {
        name: SimulatedSite(rows=dataclasses.replace(r, units=units), gate=PASSED)
        for name, r in rows.items()
    }
    holdout = tiny_rows(CLASSES, 6, seed=9)
    return store, list(simulate(Setting(what, base, sites, holdout), store=store))


def test_the_page_shows_the_three_kinds_of_bounds(base):
    records = [campaign(base, snippet).privacy.record for snippet in SNIPPETS]

    assert [type(r.clip_norm) for r in records] == [float, GroupBounds, float]
    assert [type(r.adaptive_clip) for r in records] == [type(None), type(None), AdaptiveClip]
    # What the page says: the root of .3^2 + .5^2.
    assert records[1].sensitivity == pytest.approx(0.583, abs=5e-4)


@pytest.mark.parametrize("rule", ["lora", "rolora"])
@pytest.mark.parametrize("number", range(3), ids=["one-bound", "two-bounds", "moving-bound"])
def test_every_kind_of_bound_runs_to_the_end_at_the_epsilon_of_its_multiplier(base, number, rule):
    what = campaign(base, SNIPPETS[number], rule=rule)

    store, statuses = run(base, what)

    assert [s.outcome and s.outcome.status for s in statuses] == ["released"] * 3
    # Whatever the bound, what is charged is noise_multiplier 3 at rate .5 over 3 x 2 steps.
    last = statuses[-1].budgets["a"]
    event = assemble(campaign(base, SNIPPETS[0])).noise.event
    assert last.epsilon == pytest.approx(epsilon([event] * 3, delta=1e-5), rel=1e-3)
    assert not [key for key in store.list("") if key.endswith(keys.STATE)]


def test_people_of_several_rows_train_under_a_moving_bound(base):
    what = campaign(base, SNIPPETS[2], unit="patient_id", max_rows_per_unit=3)

    _, statuses = run(base, what, units=np.repeat(np.arange(4), 3))

    assert [s.outcome and s.outcome.status for s in statuses] == ["released"] * 3
