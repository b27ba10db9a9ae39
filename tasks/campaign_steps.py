"""The coordinator's steps around the rounds: freeze, choose the next round, stop.

The store is probed here, once per run: rounds on a store that overwrites would not be safe.
"""

from collections.abc import Callable, Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import assemble
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.loading import parse_campaign
from fl_core.privacy.warnings import campaign_warnings
from fl_core.rounds import plan, status
from tasks.federation import open_coordinator
from tasks.lock_step import put_text, read_locked
from tasks.object_store import require_write_once
from tasks.settings import open_store, read_settings


@task(name="freeze-campaign", cache_policy=NO_CACHE, persist_result=False)
def freeze_text(text: str, attempt: str, lock: Callable[[str], None]) -> str:
    """Lock a campaign's text, freeze it in the store, and return its id.

    Args:
        text: Text of a campaign file.
        attempt: Name of this try.
        lock: Has the stored text of that hash locked under that name, and waits for it.

    Raises:
        CampaignError: One complaint that names field, value and remedy.
        PolicyRefused: The noise is the coordinator's, and it keeps no ledger to charge it on.
    """
    parse_campaign(text, source="campaign text")
    store = _fit_store()
    text_sha256 = sha256_hex(text.encode())
    put_text(store, text, text_sha256)
    lock(text_sha256)
    campaign = read_locked(store, text_sha256, attempt)
    # Before it is frozen: the campaign may need a ledger that this coordinator does not keep.
    open_coordinator(assemble(campaign), read_settings(), store)
    digest = plan.open_campaign(store, campaign).digest
    get_run_logger().info("campaign frozen id=%s digest=%s", campaign.id, digest)
    _warn(campaign)
    return campaign.id


@task(name="read-campaign", cache_policy=NO_CACHE, persist_result=False)
def known_campaign(campaign_id: str) -> str:
    """Return the id of a campaign that is frozen in the store.

    Raises:
        CampaignError: No campaign of that id.
    """
    store = _fit_store()
    assembly = plan.read_assembly(store, campaign_id)
    open_coordinator(assembly, read_settings(), store)
    _warn(assembly.campaign)
    return assembly.campaign.id


@task(name="choose-round", cache_policy=NO_CACHE, persist_result=False)
def choose_round(campaign_id: str) -> int | str:
    """Return the round to run next, or in words why there is none."""
    settings = read_settings()
    store = open_store(settings)
    assembly = plan.read_assembly(store, campaign_id)
    federation = open_coordinator(assembly, settings, store).federation
    return status.next_round(assembly, store, federation=federation)


@task(name="stop-sessions", cache_policy=NO_CACHE, persist_result=False)
def stop_runs(campaign_id: str, runs: Sequence[str]) -> None:
    """End the site sessions of these campaign runs by their stop objects; a second time is safe."""
    store = open_store(read_settings())
    for run in runs:
        store.put_once(keys.stop(campaign_id, run), b"{}")


def _warn(campaign: Campaign) -> None:
    # Whoever starts a run in Prefect's form has not seen what the command line shows.
    for warning in campaign_warnings(campaign):
        get_run_logger().warning("%s", warning.line)


def _fit_store() -> ObjectStore:
    """Return the campaigns' store after a probe that it never overwrites."""
    store = open_store(read_settings())
    require_write_once(store)
    return store
