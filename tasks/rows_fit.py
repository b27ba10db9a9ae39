"""Whether a site's rows fit a campaign: what only the site can know, asked before a round is.

In a round such a site declines by the names of rules alone; here its operator reads the reason.
"""

import logging
from collections.abc import Sequence

from fl_core.artifacts import keys
from fl_core.artifacts.documents import read_document
from fl_core.artifacts.store import ObjectStore, exists
from fl_core.campaign.campaign import Campaign
from fl_core.data.rows import require_columns, require_rows
from fl_core.data.units import require_unit, unit_of
from fl_core.errors import StoreError
from fl_core.privacy.policy_documents import Approval
from tasks.gateway_store import GatewayStore
from tasks.settings import open_store
from tasks.site_config import SiteConfig, SiteHome, site_policy, site_settings
from tasks.site_rows import read_rows
from tasks.suite_files import load_locked_suite, required_columns

log = logging.getLogger(__name__)


def require_rows_fit(home: SiteHome, config: SiteConfig, *, campaign: Campaign) -> None:
    """Check that the site's file has rows, and every column that campaign and gate read.

    Args:
        home: The site's folder; the config's path is relative to it.
        config: The site's config.
        campaign: A locked campaign.

    Raises:
        CampaignError: The file is absent, unreadable or empty, a column is not there, or no row
            says whose it is.
        PolicyRefused: The gate's suite is not the frozen one here.
    """
    rows = read_rows(home.root / config.data)
    require_rows(rows)
    suite = load_locked_suite(campaign.gate, folder=config.suites)
    unit = unit_of(campaign)
    require_columns(rows, required_columns(suite, campaign.task, unit=unit))
    require_unit(rows, unit)


def approved_campaigns(home: SiteHome, config: SiteConfig) -> list[Campaign]:
    """Return the campaigns in the store that the site has approved; none if the store is away."""
    approved = site_policy(home).campaigns
    store = open_store(site_settings(home, config))
    try:
        campaigns = [
            read_document(store, key, Campaign) for key in _campaign_keys(home, store, approved)
        ]
    except StoreError as error:
        # The worker waits for the store for ever; a check that cannot be made must not end it.
        log.warning("rows are not compared with approved campaigns, the store is away: %s", error)
        return []
    return [campaign for campaign in campaigns if campaign.digest in approved]


def _campaign_keys(home: SiteHome, store: ObjectStore, approved: Sequence[str]) -> list[str]:
    approvals = home.store("approvals")
    by_digest = {digest: keys.approval(digest) for digest in approved}
    written = set(approvals.list(keys.APPROVALS)).intersection(by_digest.values())
    ids = {read_document(approvals, key, Approval).campaign for key in written}
    if isinstance(store, GatewayStore):
        # A gateway lists no names of campaigns; what policy.toml names by digest alone waits.
        return sorted(keys.campaign(each) for each in ids if exists(store, keys.campaign(each)))
    return [key for key in store.list("campaigns/") if keys.campaign_id_of(key) is not None]
