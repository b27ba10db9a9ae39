"""The names under which Prefect knows fedloom: pools, flows and the type of a worker.

Prefect-free, because a site's worker and the gateway name pools and flows before Prefect may be
imported, which reads its settings once. A name that changes is another pool or flow for Prefect.
"""

COORDINATOR_POOL = "coordinator"
EVALUATION_POOL = "evaluation"
WORKER_TYPE = "fedloom-site"
RUN_CAMPAIGN = "run-campaign"
SITE_SESSION = "site-session"
EVALUATE_RELEASE = "evaluate-release"
LOCK_CAMPAIGN = "lock-campaign"


def site_pool(site: str) -> str:
    """Return the name of a site's work pool."""
    return f"site-{site}"
