"""The process of a site's worker: which API it speaks to, which flow it may run, what it may take.

Everything comes from the site's own folder. Behind a gateway the only address that Prefect's
client of this process and of its child is given is the egress on loopback.
"""

import os

from flows.prefect_names import SITE_SESSION, site_pool
from flows.way_out import WayOut, open_way_out
from tasks.gateway_access import SiteDoor
from tasks.site_config import SiteConfig, SiteHome

SITE_HOME = "FEDLOOM_SITE_HOME"
_GIB = 1 << 30


def serve_site(home: SiteHome, config: SiteConfig) -> None:
    """Serve the site's pool until SIGTERM or SIGINT.

    Raises:
        ServerFailed: The gateway refuses the versions here, another worker serves this site, or
            the flow's process does not start.
    """
    os.environ[SITE_HOME] = str(home.root)
    # Before Prefect is imported, which reads its settings then.
    os.environ.setdefault("PREFECT_HOME", str(home.root / "prefect"))
    pool = site_pool(config.site)
    if config.gateway is None:
        os.environ["PREFECT_API_URL"] = str(config.prefect_api_url)
        _serve(config, pool, None)
        return
    door = SiteDoor(site=config.site, home=home.root, access=config.gateway)
    with open_way_out(door, pool=pool) as way:
        _serve(config, pool, way)


def _serve(config: SiteConfig, pool: str, way: WayOut | None) -> None:
    from flows.site_worker import run_worker

    run_worker(
        pool=pool,
        allowed={SITE_SESSION: "flows.site_session.site_session"},
        preload="flows.site_session.preload",
        name=config.site,
        api_logging=False,
        hard_timeout_s=config.hard_limit_s,
        memory_bytes=None if config.memory_gb is None else int(config.memory_gb * _GIB),
        way=way,
    )
