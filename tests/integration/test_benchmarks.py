"""The measuring scripts on a tiny model: they run, resume, judge, and show what was measured.

What they find on the real models is in docs/worth.md and docs/performance.md.
"""

import dataclasses
import json

import pytest
import torch
from tiny_models import CLASSES, locked_spec, tiny_base, tiny_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from worlds import PASSED, campaign_of

from benchmarks import private_step, worth, worth_report
from benchmarks.worth import Run
from benchmarks.worth_data import WorthSet, review_rows
from fl_core.simulation import Setting, SimulatedSite
from flows.demo_data import DECLARED

torch.set_num_threads(1)
SIZES = {"site-a": 6, "site-d": 18}


@pytest.fixture(scope="module")
def tiny_set() -> WorthSet:
    words = ("[PAD]", "[UNK]", "the", "oil")
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    base = dataclasses.replace(
        tiny_base(CLASSES),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ),
    )
    campaign = campaign_of(
        tuple(SIZES),
        task=CLASSES,
        adapter=locked_spec(base, CLASSES),
        training={"local_steps": 2, "batch_size": 4, "learning_rate": 0.1, "micro_batch": 8},
        max_rounds=2,
    )
    sites = {
        name: SimulatedSite(tiny_rows(CLASSES, n, seed=n), PASSED) for name, n in SIZES.items()
    }
    setting = Setting(campaign, base, sites, tiny_rows(CLASSES, 10, seed=9))
    return WorthSet(name="excavators", setting=setting, sizes={**SIZES, "pooled": 24})


def test_an_interrupted_measurement_goes_on_with_the_runs_that_are_missing(tiny_set, tmp_path):
    runs = [
        Run("excavators", "federation", "lora", 8.0, 0),
        Run("excavators", "pooled", "ffa_lora", None, 0),
        Run("excavators", "alone", "head", 1.0, 0),
    ]
    results = tmp_path / "new" / "worth.jsonl"
    loaded = []

    def load(name, split, *, folder):
        loaded.append((name, split))
        return tiny_set

    worth.run_all(runs[:2], results, load=load)
    first = results.read_text()
    worth.run_all(runs, results, load=load)

    lines = worth.read_lines(results)
    assert results.read_text().startswith(first)
    assert [(line["role"], line["epsilon"]) for line in lines] == [
        ("federation", 8.0),
        ("pooled", None),
        ("alone", 1.0),
    ]
    assert all(0 <= line["accuracy"] <= 1 for line in lines)
    assert loaded == [("excavators", "holdout")] * 2


def test_every_run_of_the_plan_is_measured_once_and_repeats_come_last():
    runs = list(worth.planned())

    # Three repeats of two sets, five guarantees, six kinds; and of six kinds on the reviews.
    assert len(set(runs)) == len(runs) == 3 * (2 * 5 * 6 + 6)
    assert [run.repeat for run in runs] == sorted(run.repeat for run in runs)


def test_a_run_changes_rule_guarantee_and_sites_and_nothing_else(tiny_set):
    whole = tiny_set.setting.campaign

    alone = worth.campaign_of(Run("excavators", "alone", "head", 2.0, 0), tiny_set)

    assert alone.sites == ("site-d",)
    assert alone.adapter.rule == "head"
    # Sampling rate 0.1 of the largest site's 18 declared rows.
    assert alone.training.batch_size == pytest.approx(1.8)
    unchanged = {"adapter", "training", "privacy", "sites"}
    assert alone.model_dump(exclude=unchanged) == whole.model_dump(exclude=unchanged)


def test_every_step_carries_equal_noise_at_every_epsilon(tiny_set):
    def noise_of_a_step(epsilon: float) -> float:
        campaign = worth.campaign_of(Run("excavators", "federation", "lora", epsilon, 0), tiny_set)
        return campaign.training.learning_rate * campaign.privacy.record.noise_multiplier

    assert noise_of_a_step(1.0) == pytest.approx(noise_of_a_step(8.0))


def test_a_table_shows_median_and_range_and_leaves_out_what_diverged(tmp_path):
    def line(accuracy, **changes):
        kind = {"set": "s", "role": "federation", "rule": "lora", "epsilon": 8.0}
        return kind | {"split": "holdout", "accuracy": accuracy, "macro_f1": accuracy} | changes

    lines = [line(0.5), line(0.9), line(0.6), line(None), line(0.1, split="validation")]
    document = tmp_path / "worth.md"
    document.write_text(f"Before\n{worth_report.BEGIN}\nold\n{worth_report.END}\nafter\n")

    worth_report.write_into(document, lines)
    worth_report.draw(lines, tmp_path / "worth.png")

    text = document.read_text()
    assert "| federation, lora |  | 0.600 (0.500-0.900) |" in text
    assert "old" not in text
    assert text.startswith("Before\n")
    assert text.endswith("after\n")
    assert (tmp_path / "worth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rows", "weights", "divisors", "expected"),
    [
        # Five equal sites: sqrt(5) times one of them, and pooling would be sqrt(5) times that.
        ([100] * 5, [1] * 5, [10] * 5, 100 * 5**0.5),
        # One divisor and weights by size: the square root of the sum of squares.
        ([30, 40], [30, 40], [10, 10], 50.0),
        # A divisor for every site's own size makes the same weights uniform: 70 / sqrt(2).
        ([30, 40], [30, 40], [3, 4], 70 / 2**0.5),
        # A site by itself.
        ([30], [1], [7], 30.0),
    ],
    ids=["equal", "by-size", "own-divisors", "alone"],
)
def test_effective_rows_by_hand(rows, weights, divisors, expected):
    sites = "abcde"[: len(rows)]

    found = worth_report.effective_rows(
        dict(zip(sites, rows, strict=True)),
        weights=dict(zip(sites, weights, strict=True)),
        divisors=dict(zip(sites, divisors, strict=True)),
    )

    assert found == pytest.approx(expected)


def test_the_demo_federation_is_worth_little_more_than_its_largest_site():
    # Rows at the sites and declared sizes of docs/demo.md; by hand 1,843,585 / sqrt(1,839,104).
    rows = dict(zip(DECLARED, (62, 515, 418, 1134, 392), strict=True))
    one_divisor = dict.fromkeys(DECLARED, 102.4)

    found = worth_report.effective_rows(rows, weights=DECLARED, divisors=one_divisor)

    assert found == pytest.approx(1359.4, abs=0.1)


def test_reviews_of_the_package_have_three_labels_and_sites_of_unequal_size():
    rows = review_rows()

    assert len(rows) == 979
    assert set(rows["label"]) == {"negative", "neutral", "positive"}
    counts = rows["site"].value_counts()
    assert list(counts.sort_index()) == sorted(counts, reverse=True)


def test_a_private_step_costs_the_arithmetic_of_a_plain_one():
    case = private_step.Case("minilm", tokens=10, batch=4, turns=3)

    figures = private_step.measure(case, tiny_base(CLASSES))

    assert figures.arithmetic == pytest.approx(1.0, abs=0.02)
    assert figures.time[0] <= figures.time[1] <= figures.time[2]


def test_passed_limits_are_named():
    case = private_step.Case("minilm", tokens=64, batch=16, turns=3)
    right = private_step.Figures(
        case,
        arithmetic=1.01,
        memory=1.05,
        memory_opacus=1.0,
        time=(0.9, 1.05, 1.2),
        time_opacus=(1.0, 1.1, 1.2),
        to_opacus=(0.9, 1.01, 1.1),
        plain_s=0.1,
    )
    wrong = dataclasses.replace(
        right, arithmetic=1.5, memory=1.2, time=(1.1, 1.2, 1.3), to_opacus=(1.01, 1.1, 1.2)
    )
    small = dataclasses.replace(wrong, case=dataclasses.replace(case, batch=8))

    assert right.passed_limits() == []
    assert [text.split()[0] for text in wrong.passed_limits()] == [
        "arithmetic",
        "peak",
        "time",
        "slower",
    ]
    assert [text.split()[0] for text in small.passed_limits()] == ["arithmetic", "peak", "slower"]


def test_results_that_are_kept_are_of_runs_that_the_plan_still_has():
    planned = {json.dumps(dataclasses.asdict(run)) for run in worth.planned()}
    names = [field.name for field in dataclasses.fields(Run)]

    kept = [
        json.dumps({name: line[name] for name in names}) for line in worth.read_lines(worth.RESULTS)
    ]

    assert set(kept) <= planned
    assert len(set(kept)) == len(kept)


def test_the_document_shows_the_results_that_are_kept(tmp_path):
    copy = tmp_path / "worth.md"
    copy.write_bytes(worth.DOCUMENT.read_bytes())

    worth_report.write_into(copy, worth.read_lines(worth.RESULTS))

    assert copy.read_text() == worth.DOCUMENT.read_text()
