"""A campaign: rounds until done, stopped or the budget is spent; safe to run again at any time."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from prefect import flow, get_run_logger, tags
from prefect.runtime import flow_run
from pydantic import Field

from fl_core.campaign.loading import MAX_TEXT_BYTES, parse_campaign
from fl_core.errors import CampaignError, FedloomError
from fl_core.rounds.documents import RoundChoice
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
Quorum = Annotated[int, Field(title="Quorum in this run", ge=0, le=9999)]
Grace = Annotated[float, Field(title="Grace time in this run, in seconds", ge=0, le=31_536_000)]


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
def run_campaign(
    campaign_id: Id = "",
    campaign: Text = "",
    rounds: Rounds = 0,
    quorum: Quorum = 0,
    grace_s: Grace = 0.0,
) -> str:
    """Start a campaign from its text, or resume one by its id.

    Running it again finishes what was interrupted; no round is released twice, also where two runs
    drive one campaign. Cohort, deadline, quorum and share are the frozen campaign's (`[cohort]`);
    the last two fields may ask for more in the rounds that this run opens.

    Args:
        campaign_id: Id of a campaign to resume, such as my-first; leave empty to start a new one.
        campaign: Text of a campaign file (TOML), as `fedloom init` writes; leave empty to resume.
        rounds: Stop after so many rounds; 0 runs until the campaign ends.
        quorum: Accepted updates that a round needs; 0 keeps the campaign's number. A run may ask
            for more than the campaign, never for less.
        grace_s: Wait so long for the rest once the quorum is reached, never past the campaign's
            deadline; 0 keeps the campaign's. Refused where a guarantee needs all answers at one
            public time.
    """
    if bool(campaign_id) == bool(campaign):
        raise CampaignError("give the id of a campaign to resume, or the text of a new one")
    run = str(flow_run.id)
    frozen = (
        freeze_text(campaign, run, partial(dispatch.have_locked, attempt=run))
        if campaign
        else known_campaign(campaign_id)
    )
    choice = RoundChoice(quorum=quorum or None, grace_s=grace_s or None)
    try:
        with tags(f"campaign:{frozen}"), _sessions_end(frozen, run) as ending:
            ending.is_over = _run_rounds(frozen, run, rounds=rounds, choice=choice)
    except dispatch.CancelledRun:
        ended: str = dispatch.cancelled(f"cancelled; `fedloom run {frozen}` goes on where it was")
        return ended
    return frozen


def _run_rounds(campaign_id: str, run: str, *, rounds: int, choice: RoundChoice) -> bool:
    """Run rounds, and say whether the campaign has come to its end."""
    for other in dispatch.other_runs(campaign_id, run=run):
        get_run_logger().warning(
            "campaign %s is driven by run %s too; both do the same rounds, each is released once",
            campaign_id,
            other,
        )
    log_pending(campaign_id, dispatch.evaluate)
    done = 0
    while isinstance(following := choose_round(campaign_id), int):
        outcome = federated_round(campaign_id, following, run, choice)
        done += 1
        if outcome.status != "released" or done == rounds:
            break
    get_run_logger().info("campaign run ends campaign=%s rounds=%d", campaign_id, done)
    return not isinstance(following, int)


@dataclass
class _Ending:
    """How a run ends: the campaign with it, cancelled by a person, or neither."""

    is_over: bool = False
    is_cancelled: bool = True


@contextlib.contextmanager
def _sessions_end(campaign_id: str, run: str) -> Iterator[_Ending]:
    """End the sites' sessions however the run ends; those of a cancelled run at once."""
    ending = _Ending()
    try:
        yield ending
        ending.is_cancelled = False
    except dispatch.CancelledRun:
        raise
    except Exception:
        ending.is_cancelled = False
        raise
    finally:
        try:
            _end_sessions(campaign_id, run, ending)
        except BaseException:
            # The signal by which a person's cancellation arrives may come right here: once more.
            _end_sessions(campaign_id, run, ending)
            raise


def _end_sessions(campaign_id: str, run: str, ending: _Ending) -> None:
    runs = [run]
    try:
        runs = dispatch.runs_to_stop(campaign_id, run=run, is_over=ending.is_over)
        if ending.is_cancelled:
            dispatch.cancel_sessions(campaign_id, runs=runs)
    except FedloomError as error:
        # The stop object below ends them without the server.
        get_run_logger().warning("sessions are not cancelled: %s", error)
    stop_runs(campaign_id, runs)
    try:
        # A cancelled run is killed half a minute later, so nothing is waited for.
        is_patient = not ending.is_cancelled
        dispatch.settle_sessions(campaign_id, run=run, is_patient=is_patient)
    except FedloomError as error:
        get_run_logger().warning("sessions of lost workers are not closed: %s", error)
