"""What privacy and federation cost and bring: accuracy and macro-F1 of many whole campaigns.

    python -m benchmarks.worth                 # goes on where the results file ends
    python -m benchmarks.worth --tune          # learning rates, on validation rows
    python -m benchmarks.worth --table         # docs/worth.md's table and figure from the results

Every run is a campaign of the product's own ``simulate`` with noise as a real site draws it,
calibrated to its epsilon the way locking does. One line of JSON per run; stop it at any time.
Repeats come last in the order, so that a results file cut short still shows every kind of run.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

from benchmarks.worth_data import LARGEST, POOLED, SETS, Split, WorthSet, load_set, pooled_site
from benchmarks.worth_report import draw, write_into
from fl_core.campaign.campaign import Campaign
from fl_core.errors import TrainingError
from fl_core.privacy.forecast import with_noise
from fl_core.simulation import Setting, simulate

Role = Literal["federation", "alone", "pooled"]


class Load(Protocol):
    """Makes a set ready; ``worth_data.load_set`` is one."""

    def __call__(self, name: str, split: Split, *, folder: Path) -> WorthSet: ...


RESULTS = Path(__file__).with_name("results") / "worth.jsonl"
TUNING = Path(__file__).with_name("results") / "worth_tuning.jsonl"
DOCUMENT = Path(__file__).parents[1] / "docs" / "worth.md"
FIGURE = DOCUMENT.parent / "images" / "worth.png"
RULES = ("lora", "ffa_lora", "rolora", "head")
DEFAULT_RULE = "ffa_lora"
EPSILONS = (8.0, None, 2.0, 4.0, 1.0)
REPEATS = 3
# The reviews show too little to compare rules on (docs/worth.md).
COMPARED = ("excavators", "intents")
REASON = "a benchmark on public rows, for the price of privacy"
# Step sizes by set and rule, chosen on validation rows (docs/worth.md): at epsilon 8, and without
# privacy, where nothing is clipped and sizes are of another kind.
LEARNING_RATES: dict[str, dict[str, tuple[float, float]]] = {
    "excavators": {
        "lora": (10.0, 0.15),
        "ffa_lora": (14.0, 0.15),
        "rolora": (10.0, 0.15),
        "head": (28.0, 0.15),
    },
    "intents": {
        "lora": (7.0, 0.15),
        "ffa_lora": (10.0, 0.5),
        "rolora": (10.0, 0.15),
        "head": (14.0, 0.5),
    },
    "reviews": {
        "lora": (2.0, 0.04),
        "ffa_lora": (2.0, 0.04),
        "rolora": (2.0, 0.04),
        "head": (2.0, 0.04),
    },
}
# Tried by --tune, as multiples of the table above.
TRIED = (0.33, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Run:
    """One campaign to run.

    Attributes:
        set: Name of the rows.
        role: All five sites, the largest alone, or all rows at one site.
        rule: Adapter rule.
        epsilon: Target at the campaign's delta; None without privacy.
        repeat: From 0.
        split: What it is scored on.
        factor: On the learning rate; other than 1 only for tuning.
    """

    set: str
    role: Role
    rule: str
    epsilon: float | None
    repeat: int
    split: Split = "holdout"
    factor: float = 1.0


def planned() -> Iterator[Run]:
    """Yield every run of the table, first one of each kind."""
    for repeat in range(REPEATS):
        for epsilon in EPSILONS:
            for name in COMPARED:
                for rule in RULES:
                    yield Run(name, "federation", rule, epsilon, repeat)
                yield Run(name, "alone", DEFAULT_RULE, epsilon, repeat)
                yield Run(name, "pooled", DEFAULT_RULE, epsilon, repeat)
        for epsilon in EPSILONS[:2]:
            yield Run("reviews", "federation", "head", epsilon, repeat)
            yield Run("reviews", "federation", DEFAULT_RULE, epsilon, repeat)
            yield Run("reviews", "pooled", DEFAULT_RULE, epsilon, repeat)


def tuning_runs() -> Iterator[Run]:
    """Yield the runs that learning rates are chosen by: validation rows, one run each."""
    for epsilon in (8.0, None):
        for factor in TRIED:
            for name in COMPARED:
                for rule in RULES:
                    yield Run(name, "federation", rule, epsilon, 0, "validation", factor)


def campaign_of(run: Run, of: WorthSet) -> Campaign:
    """Return the locked campaign of a run: the set's own, with rule, guarantee, sites changed.

    At a lower epsilon the step size falls as the noise multiplier grows, so that every step carries
    the noise that it carries at epsilon 8.
    """
    whole = of.setting.campaign
    record = whole.privacy.record
    if record is None:
        raise ValueError("the sets' campaigns state privacy.record")
    at_eight, without = LEARNING_RATES[run.set][run.rule]
    rate, privacy = without, {"none": {"reason": REASON}}
    if run.epsilon is not None:
        noise = _noise(whole, run.epsilon)
        rate = at_eight * _noise(whole, 8.0) / noise
        changed = record.model_copy(update={"epsilon": run.epsilon, "noise_multiplier": noise})
        privacy = {"record": changed.model_dump()}
    training = whole.training.model_dump() | {"learning_rate": rate * run.factor}
    fields: dict[str, Any] = {
        "adapter": whole.adapter.model_dump() | {"rule": run.rule},
        "privacy": privacy,
        "training": training,
    }
    if run.role != "federation":
        site = POOLED if run.role == "pooled" else LARGEST[run.set]
        training["batch_size"] = record.sampling_rate * of.sizes[site]
        fields["sites"] = (site,)
    return Campaign.model_validate(whole.model_dump() | fields)


def setting_of_run(run: Run, of: WorthSet) -> Setting:
    """Return what a run simulates on; the set's rows and base model are shared, not copied."""
    sites = dict(of.setting.sites)
    if run.role == "alone":
        sites = {LARGEST[run.set]: sites[LARGEST[run.set]]}
    elif run.role == "pooled":
        sites = {POOLED: pooled_site(sites)}
    return replace(of.setting, campaign=campaign_of(run, of), sites=sites)


def measure(run: Run, of: WorthSet) -> dict[str, object]:
    """Run one campaign to its end and return its line of results; no figures if it diverged."""
    setting = setting_of_run(run, of)
    campaign, record = setting.campaign, setting.campaign.privacy.record
    started = time.process_time()
    try:
        scores = [status.evaluation for status in simulate(setting)]
    except TrainingError:
        scores = [None]
    last = scores[-1]
    return {
        **asdict(run),
        "accuracy": None if last is None else round(last.accuracy, 4),
        "macro_f1": None if last is None or last.macro_f1 is None else round(last.macro_f1, 4),
        "learning_rate": float(f"{campaign.training.learning_rate:.4g}"),
        "noise_multiplier": None if record is None else record.noise_multiplier,
        "steps": campaign.total_steps,
        "cpu_s": round(time.process_time() - started, 1),
        "commit": _commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_all(runs: Sequence[Run], results: Path, *, load: Load = load_set) -> None:
    """Measure every run that the results file does not hold yet, appending a line each.

    Args:
        runs: In the order in which they are measured.
        results: JSON lines; made where it is missing.
        load: Makes a set ready, once for all its runs.
    """
    done = {_key(line) for line in read_lines(results)}
    left = [run for run in runs if _key(asdict(run)) not in done]
    with TemporaryDirectory() as folder:
        sets: dict[tuple[str, Split], WorthSet] = {}
        for number, run in enumerate(left, start=1):
            of = sets.get((run.set, run.split))
            if of is None:
                of = sets[run.set, run.split] = load(run.set, run.split, folder=Path(folder))
            line = measure(run, of)
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(f"{number}/{len(left)}", json.dumps(line), flush=True)


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file; none where there is no file."""
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def _key(line: dict[str, Any]) -> tuple[object, ...]:
    names = ("set", "role", "rule", "epsilon", "repeat", "split", "factor")
    return tuple(line[name] for name in names)


_NOISE: dict[tuple[str, float], float] = {}


def _noise(whole: Campaign, epsilon: float) -> float:
    known = _NOISE.get((whole.id, epsilon))
    if known is not None:
        return known
    record = whole.privacy.record
    if record is None:
        raise ValueError("there is no guarantee to calibrate for")
    free = record.model_copy(update={"epsilon": epsilon, "noise_multiplier": None})
    privacy = whole.privacy.model_copy(update={"record": free})
    found = with_noise(whole.model_copy(update={"privacy": privacy})).privacy.record
    if found is None or found.noise_multiplier is None:
        raise ValueError("locking left the noise open")
    _NOISE[whole.id, epsilon] = found.noise_multiplier
    return found.noise_multiplier


@cache
def _commit() -> str:
    # A plain copy of a commit has no git folder, and says which one it is.
    if stated := os.environ.get("FEDLOOM_COMMIT"):
        return stated
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tune", action="store_true", help="choose learning rates")
    parser.add_argument(
        "--table", action="store_true", help="write the document's figures, no runs"
    )
    parser.add_argument("--results", type=Path, default=None, help="results file, JSON lines")
    parser.add_argument("--set", choices=SETS, default=None, help="one set only")
    parser.add_argument("--first", type=int, default=None, help="only the first N runs")
    arguments = parser.parse_args()
    results = arguments.results or (TUNING if arguments.tune else RESULTS)
    if arguments.table:
        lines = read_lines(results)
        write_into(DOCUMENT, lines)
        draw(lines, FIGURE)
        return
    import torch

    torch.set_num_threads(1)
    runs = list(tuning_runs() if arguments.tune else planned())
    runs = [run for run in runs if arguments.set in (None, run.set)][: arguments.first]
    run_all(runs, results)


if __name__ == "__main__":
    main()
