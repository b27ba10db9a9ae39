"""A session that only holds its place, for the worker of a site in tests."""

import time

from prefect import flow


@flow(name="site-session", flow_run_name="{site}", persist_result=False)
def hold(campaign_id: str, run: str, site: str) -> None:
    """Hold the site's place until somebody ends it."""
    del campaign_id, run, site
    time.sleep(600)
