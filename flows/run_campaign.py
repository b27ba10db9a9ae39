"""A campaign: rounds until done, stopped or the budget is spent; safe to run again at any time."""

from functools import partial
from typing import Annotated

from prefect import flow, get_run_logger, tags
from prefect.runtime import flow_run
from pydantic import Field

from fl_core.campaign.loading import MAX_TEXT_BYTES, parse_campaign
from fl_core.errors import CampaignError
from flows import dispatch
from flows.federated_round import federated_round
from tasks.campaign_steps import choose_round, freeze_text, known_campaign, stop_runs
from tasks.round_log import log_pending

Id = Annotated[
    str,
    Field(
        title="Campaign to resume",
        description="Id of a campaign that was started before; leave empty to start a new one.",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?)?$",
        max_length=64,
    ),
]
Text = Annotated[
    str,
    Field(
        title="New campaign",
        description=(
            "Text of a campaign file (TOML), as `fedloom init` writes it; leave empty to resume."
        ),
        max_length=MAX_TEXT_BYTES,
    ),
]
Rounds = Annotated[
    int,
    Field(
        title="Rounds in this run",
        description="Stop after so many rounds; 0 runs until the campaign ends.",
        ge=0,
        le=9999,
    ),
]


def run_name() -> str:
    """Return the campaign's id, also where it has to be read from a new campaign's text."""
    given = flow_run.parameters
    if given.get("campaign_id"):
        return str(given["campaign_id"])
    try:
        return parse_campaign(str(given.get("campaign", "")), source="campaign text").id
    except CampaignError:
        # The flow itself says what is wrong with the text.
        return "campaign"


@flow(name="run-campaign", flow_run_name=run_name, persist_result=False)
def run_campaign(campaign_id: Id = "", campaign: Text = "", rounds: Rounds = 0) -> str:
    """Start a campaign from its text, or resume one by its id.

    Running it again finishes what was interrupted; no round is released twice.

    Args:
        campaign_id: Id of a campaign to resume, such as my-first; leave empty to start a new one.
        campaign: Text of a campaign file (TOML), as `fedloom init` writes; leave empty to resume.
        rounds: Stop after so many rounds; 0 runs until the campaign ends.
    """
    if bool(campaign_id) == bool(campaign):
        raise CampaignError("give the id of a campaign to resume, or the text of a new one")
    run = str(flow_run.id)
    frozen = (
        freeze_text(campaign, run, partial(dispatch.have_locked, attempt=run))
        if campaign
        else known_campaign(campaign_id)
    )
    with tags(f"campaign:{frozen}"):
        log_pending(frozen, dispatch.evaluate)
        done = 0
        while isinstance(following := choose_round(frozen), int):
            outcome = federated_round(frozen, following, run)
            done += 1
            if outcome.status != "released" or done == rounds:
                break
        stop_runs(frozen, [run, *(s.run for s in dispatch.session_runs(frozen).values())])
    get_run_logger().info("campaign run ends campaign=%s rounds=%d", frozen, done)
    return frozen
