"""The names that are fixed without Prefect are those that Prefect's own objects have."""

import subprocess
import sys

from flows import prefect_names
from flows.evaluate_release import evaluate_release
from flows.lock_campaign import lock_campaign
from flows.run_campaign import run_campaign
from flows.site_session import site_session
from flows.site_worker import WarmWorker


def test_flows_and_worker_have_their_fixed_names():
    assert run_campaign.name == prefect_names.RUN_CAMPAIGN
    assert site_session.name == prefect_names.SITE_SESSION
    assert evaluate_release.name == prefect_names.EVALUATE_RELEASE
    assert lock_campaign.name == prefect_names.LOCK_CAMPAIGN
    assert WarmWorker.type == prefect_names.WORKER_TYPE


def test_names_are_known_without_prefect():
    code = "import sys, flows.prefect_names as n; print(n.site_pool('a'), 'prefect' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["site-a", "False"]
