"""When a campaign's rounds run by themselves: one schedule per campaign, at the Prefect server.

A schedule belongs to the deployment ``run-campaign`` and names a frozen campaign, so what runs at
night is what sites approved by day. Its name is the campaign's id: stating it again changes it,
and the page of the deployment shows which is whose.
"""

from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from fl_core.errors import CampaignError
from flows.prefect_names import RUN_CAMPAIGN
from flows.registration import api


@dataclass(frozen=True, slots=True)
class Schedule:
    """When rounds of a campaign start.

    Attributes:
        campaign_id: The frozen campaign.
        cron: Five fields: minute, hour, day, month, weekday.
        timezone: Name of the time zone that they are meant in.
        rounds: Rounds at each start; 0 runs until the campaign ends.
        is_active: False: a person paused it.
    """

    campaign_id: str
    cron: str
    timezone: str = "UTC"
    rounds: int = 1
    is_active: bool = True


def write_schedule(schedule: Schedule) -> None:
    """Give a campaign its schedule, or change the one that it has; one that is paused stays so.

    Raises:
        CampaignError: The cron line or the time zone is none.
        ServerFailed: Prefect does not answer, or knows no deployment yet.
    """
    created = DeploymentScheduleCreate(
        schedule=_cron(schedule),
        active=schedule.is_active,
        slug=schedule.campaign_id,
        parameters={"campaign_id": schedule.campaign_id, "rounds": schedule.rounds},
    )
    with api() as client:
        deployment_id = _deployment_id(client)
        found = _found(client, deployment_id, schedule.campaign_id)
        if not found:
            client.create_deployment_schedules(deployment_id, [created])
        # In one step, so that a server that fails leaves the one that there was.
        for each in found:
            client.update_deployment_schedule(
                deployment_id, each.id, schedule=created.schedule, parameters=created.parameters
            )


def remove_schedule(campaign_id: str) -> bool:
    """Take a campaign's schedule away; False where it had none."""
    with api() as client:
        return _remove(client, campaign_id)


def read_schedules() -> list[Schedule]:
    """List the schedules that were made here, by campaign; those of other kinds are left out."""
    with api() as client:
        found = client.read_deployment_schedules(_deployment_id(client))
    own = [
        Schedule(
            campaign_id=each.slug,
            cron=each.schedule.cron,
            timezone=each.schedule.timezone or "UTC",
            rounds=int(each.parameters.get("rounds", 0)),
            is_active=each.active,
        )
        for each in found
        if each.slug is not None and isinstance(each.schedule, CronSchedule)
    ]
    return sorted(own, key=lambda each: each.campaign_id)


def _cron(schedule: Schedule) -> CronSchedule:
    try:
        return CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"])
        raise CampaignError(
            f"cron {schedule.cron!r} in time zone {schedule.timezone!r} is no schedule ({reason}), "
            "expected five fields such as '0 3 * * *' and a zone such as Europe/Rome"
        ) from error


def _deployment_id(client: SyncPrefectClient) -> UUID:
    return client.read_deployment_by_name(f"{RUN_CAMPAIGN}/{RUN_CAMPAIGN}").id


def _remove(client: SyncPrefectClient, campaign_id: str) -> bool:
    deployment_id = _deployment_id(client)
    found = _found(client, deployment_id, campaign_id)
    for each in found:
        client.delete_deployment_schedule(deployment_id, each.id)
    return bool(found)


def _found(
    client: SyncPrefectClient, deployment_id: UUID, campaign_id: str
) -> list[DeploymentSchedule]:
    stated = client.read_deployment_schedules(deployment_id)
    return [each for each in stated if each.slug == campaign_id]
