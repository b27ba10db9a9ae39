"""A causal language model through a whole campaign: SmolLM2-135M, two sites, two rounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "instructions"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_held_out_loss_falls_over_two_rounds_of_two_sites():
    campaign = ROOT / "examples" / "instruction_tuning" / "campaign.toml"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "flows.cli.main", "simulate", str(campaign)),
            *("--data", f"site-a={DATA / 'site-a.jsonl'}"),
            *("--data", f"site-b={DATA / 'site-b.jsonl'}"),
            *("--holdouts", str(DATA), "--threads", "2", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    first, second = (r["evaluation"]["loss"] for r in document["rounds"])
    assert second < 0.9 * first
    assert [r["outcome"]["contributors"] for r in document["rounds"]] == [["site-a", "site-b"]] * 2
