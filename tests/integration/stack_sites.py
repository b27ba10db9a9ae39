"""A stack's store as the coordinator, the gateway and its sites see it."""

import time
from pathlib import Path

from fl_core.artifacts import keys
from fl_core.artifacts.documents import to_bytes
from fl_core.errors import StoreUnavailable
from fl_core.privacy.policy_template import policy_text
from flows.local_gateway import gateway_environment
from flows.local_sites import LocalSite, made_sites, make_local_site, site_home
from flows.local_stack import Stack
from flows.local_workers import environment
from tasks.enrolment import admit
from tasks.settings import open_store, read_settings
from tasks.site_config import read_site_config, site_settings
from tests.worlds import campaign_of

ROWS = Path("rows.csv")
POLICY = policy_text(epsilon=8.0, delta=1e-5)
PLAN = "campaigns/c1/rounds/0001/plan.json"
NORTH = "campaigns/c1/rounds/0001/updates/north/manifest.json"
SOUTH = "campaigns/c1/rounds/0001/updates/south/manifest.json"


def write_plan(stack: Stack) -> None:
    """Put something under a plan's key, and the campaign that names the sites who may read it."""
    campaign = campaign_of(("north", "south", "west"), id="c1")
    coordinator_store(stack).put_once(keys.campaign(campaign.id), to_bytes(campaign))
    coordinator_store(stack).put_once(PLAN, b"plan")


def coordinator_store(stack: Stack):
    return open_store(read_settings(environment(stack)))


def gateway_store(stack: Stack):
    """The store with the keys of the gateway's process."""
    return open_store(read_settings(gateway_environment(stack.home, stack.file)))


def site_store(stack: Stack, site: str):
    """The store as an enrolled site of the stack sees it: through the gateway."""
    if site not in made_sites(stack.home):
        admit(coordinator_store(stack), make_local_site(stack, LocalSite(site, ROWS, POLICY)))
        assert wait_for(lambda: is_let_in(stack, site))
    return door(stack, site)


def door(stack: Stack, site: str):
    home = site_home(stack.home, site)
    return open_store(site_settings(home, read_site_config(home)))


def is_let_in(stack: Stack, site: str) -> bool:
    try:
        door(stack, site).list(keys.ROSTERS)
    except StoreUnavailable:
        return False
    return True


def wait_for(is_true) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.1)
    return False
