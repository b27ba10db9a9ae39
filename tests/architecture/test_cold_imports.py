"""What a fresh process loads: flows of the coordinator stay light, commands lighter still.

Seconds matter here: torch takes 3.5, great_expectations and peft 8 each on a busy machine, and a
coordinator has no use for them (DESIGN, section 2).
"""

import subprocess
import sys

import pytest

TRAINING = ("torch", "transformers", "peft", "great_expectations")
COMMAND = (*TRAINING, "prefect", "mlflow", "pandas", "boto3", "dp_accounting", "pyarrow")

COORDINATOR = [
    "flows.run_campaign",
    "flows.federated_round",
    "flows.dispatch",
    "flows.registration",
    "flows.evaluate_release",
    "flows.lock_campaign",
]

PROGRAM = """
import sys
__import__(sys.argv[1])
print(" ".join(name for name in sys.argv[2:] if name in sys.modules))
"""


def loaded(module: str, names: tuple[str, ...]) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, module, *names]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("module", COORDINATOR)
def test_flow_of_the_coordinator_loads_no_training_library(module):
    assert loaded(module, TRAINING) == []


def test_command_loads_no_orchestration_library():
    assert loaded("flows.cli.main", COMMAND) == []


def test_gateway_starts_without_what_only_its_requests_need():
    heavy = (*TRAINING, "prefect", "mlflow", "pandas", "boto3", "dp_accounting")
    assert loaded("flows.gateway.server", heavy) == []


def test_core_loads_nothing_until_asked():
    assert loaded("fl_core", (*COMMAND, "numpy", "pydantic")) == []


def test_reading_a_campaign_loads_no_training_library():
    assert loaded("fl_core.campaign.loading", COMMAND) == []


def test_what_is_loaded_is_seen():
    assert loaded("fl_core.aggregation", ("numpy", "torch")) == ["numpy"]
