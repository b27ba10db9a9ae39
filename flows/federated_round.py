"""One round: open, collect, charge, release, evaluate, log.

The flow holds no state and no result: every step finds its own output in the store, so a run
that died or was cancelled is finished by running it again.
"""

from prefect import flow
from prefect.runtime import flow_run

from fl_core.errors import RunCancelled
from fl_core.rounds.documents import Outcome, RoundChoice
from fl_core.rounds.plan import CAMPAIGNS_OWN
from flows import dispatch
from tasks.round_log import log_pending
from tasks.round_steps import charge_round, collect_updates, open_round, release_round, skip_round


@flow(
    name="federated-round",
    flow_run_name="round-{round_number:04d}",
    persist_result=False,
    validate_parameters=True,
)
def federated_round(
    campaign_id: str, round_number: int, run: str, choice: RoundChoice = CAMPAIGNS_OWN
) -> Outcome:
    """Run one round, or finish one that was interrupted.

    Args:
        campaign_id: The frozen campaign.
        round_number: From 1.
        run: Name of the campaign run; the sites' sessions end with it.
        choice: What the run chose for rounds that it opens.
    """
    plan = open_round(campaign_id, round_number, choice)
    watch = dispatch.SessionWatch(
        campaign_id,
        sites=plan.cohort,
        run=run,
        watched=(run, str(flow_run.id)),
        leases=dispatch.leases_of(run),
    )
    try:
        watch()
        collected = collect_updates(campaign_id, plan, watch)
    except RunCancelled as error:
        ended: Outcome = dispatch.cancelled(str(error))
        return ended
    if collected.has_quorum:
        charge = charge_round(campaign_id, plan, collected)
        outcome = release_round(campaign_id, plan, collected, charge)
    else:
        outcome = skip_round(campaign_id, plan, collected)
    log_pending(campaign_id, dispatch.evaluate)
    return outcome
