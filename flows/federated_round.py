"""One round: open, collect, charge, release, evaluate, log.

The flow holds no state and no result: every step finds its own output in the store, so a run
that died is finished by running it again.
"""

from functools import partial

from prefect import flow

from fl_core.rounds.documents import Outcome
from flows import dispatch
from tasks.round_log import log_pending
from tasks.round_steps import charge_round, collect_updates, open_round, release_round, skip_round


@flow(
    name="federated-round",
    flow_run_name="round-{round_number:04d}",
    persist_result=False,
    validate_parameters=True,
)
def federated_round(campaign_id: str, round_number: int, run: str) -> Outcome:
    """Run one round, or finish one that was interrupted.

    Args:
        campaign_id: The frozen campaign.
        round_number: From 1.
        run: Name of the campaign run; the sites' sessions end with it.
    """
    plan = open_round(campaign_id, round_number)
    keep_alive = partial(dispatch.ensure_sessions, campaign_id, sites=plan.cohort, run=run)
    keep_alive()
    collected = collect_updates(campaign_id, plan, keep_alive)
    if collected.has_quorum:
        charge = charge_round(campaign_id, plan, collected)
        outcome = release_round(campaign_id, plan, collected, charge)
    else:
        outcome = skip_round(campaign_id, plan, collected)
    log_pending(campaign_id, dispatch.evaluate)
    return outcome
