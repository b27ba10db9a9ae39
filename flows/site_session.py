"""The flow at a site for one campaign run: waits for plans and takes part in each.

One flow run per site and campaign run; plans arrive as objects in the store, so a round costs no
call to the Prefect API on its critical path. It ends at the run's stop object, or when idle.
"""

import logging
import os
from pathlib import Path

from prefect import flow

from fl_core.campaign.specs import Name

SITE_HOME = "FEDLOOM_SITE_HOME"

log = logging.getLogger(__name__)


class SessionFailed(Exception):
    """The session ended early; why is in the site's own log and nowhere else."""


@flow(name="site-session", flow_run_name="{site}", persist_result=False, log_prints=False)
def site_session(campaign_id: Name, run: Name, site: Name) -> str:
    """Take part in the rounds of one campaign run.

    Whoever controls the server chooses the parameters; the worker refuses what is no name.

    Args:
        campaign_id: The frozen campaign.
        run: Name of the campaign run; its stop object ends the session.
        site: Name of the site; must be the one whose folder the worker was started with.
    """
    try:
        return _serve(campaign_id, run=run, site=site)
    except Exception:
        log.exception("session failed campaign=%s", campaign_id)
    # Raised outside the handler: a chained exception would carry its text to the Prefect API.
    raise SessionFailed("the session failed; the reason is in the site's log")


def _serve(campaign_id: str, *, run: str, site: str) -> str:
    from fl_core.errors import PolicyRefused
    from tasks.session_steps import SessionRequest, serve
    from tasks.site_config import SiteHome, read_site_config

    home = SiteHome(Path(os.environ[SITE_HOME]))
    config = read_site_config(home)
    if config.site != site:
        raise PolicyRefused(f"a session of site {site!r} was asked of site {config.site!r}")
    return serve(SessionRequest(campaign_id=campaign_id, run=run, home=home, config=config))


def preload() -> None:
    """Import what rounds need and open the site's log, so that the first round does not wait."""
    import tasks.expectations
    import tasks.session_steps  # noqa: F401  imported for its time
    from fl_core.training import site_work  # noqa: F401  imported for its time
    from tasks.site_config import SiteHome
    from tasks.site_log import keep_log

    keep_log(SiteHome(Path(os.environ[SITE_HOME])).log)
