"""`fedloom secrets|register|schedule`: what a platform engineer runs for servers of their own.

A local stack does all of it by itself; compose and Kubernetes run `fedloom register` at each start.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import CampaignError
from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json

CAMPAIGNS_AT_FIRST = 4

NotifyOption = Annotated[
    str | None,
    typer.Option(
        help="Notification block to tell, as type/name; empty: nobody; not given: as it was."
    ),
]
SilentOption = Annotated[
    int | None,
    typer.Option(
        min=90,
        help="Seconds without a heartbeat until a run counts as crashed; at first 600, then as "
        "it was.",
    ),
]
StuckOption = Annotated[
    int | None,
    typer.Option(
        min=60,
        help="Seconds until an open round is reported, over all deadlines; at first a day, then "
        "as it was.",
    ),
]
CampaignsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Campaigns that run at one time; at first 4, then as it was; more wait."
    ),
]
JobOption = Annotated[
    Path | None,
    typer.Option(
        "--campaign-job", help="Manifest of a Kubernetes Job in which each campaign is to run."
    ),
]
BucketOption = Annotated[
    list[str] | None, typer.Option("--bucket", help="A further bucket to make, as MLflow's.")
]


def secrets(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; only you may enter it.")],
    json_output: JsonOption = False,
) -> None:
    """Draw the passwords and keys of a deployment by compose or Kubernetes, one file each.

    What is there already stays, except the S3 server's rights, which are made again.

    Example: `fedloom secrets docker/secrets`
    """
    from flows.deployment_secrets import write_secrets

    written = write_secrets(folder)
    console_err.print(f"written to {folder}: {', '.join(written)}", markup=False)
    if json_output:
        print_json({"folder": str(folder.resolve()), "written": written})


def register(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    bucket: BucketOption = None,
    campaigns: CampaignsOption = None,
    campaign_job: JobOption = None,
    silent_after: SilentOption = None,
    stuck_after: StuckOption = None,
    notify: NotifyOption = None,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Make at store and Prefect what campaigns need; safe to repeat, and run at every start.

    Buckets, work pools and deployments of all enrolled sites, and automations for silent runs,
    stuck rounds and absent workers. What is not stated stays as an earlier call set it.

    Example: `fedloom register --campaigns 4 --notify slack-webhook/ops`
    """
    use_coordinator(home)
    from flows import registration
    from flows.automations import Watches, watch
    from flows.campaign_jobs import job_template

    job = None if campaign_job is None else job_template(campaign_job)
    sites = _prepared_store(bucket or [])
    pool = registration.coordinator_pool(at_first=CAMPAIGNS_AT_FIRST, job=job)
    registration.register(sites=sites, coordinator=pool)
    watches = Watches(silent_s=silent_after, stuck_s=stuck_after, notify=notify)
    with registration.api() as client:
        watched = watch(client, watches)
        if campaigns is not None:
            registration.limit_campaigns(client, campaigns)
    shown = ", ".join(sites) or "no site yet"
    console_err.print(f"registered for {shown}; watched: {', '.join(watched)}", markup=False)
    if json_output:
        print_json({"sites": sites, "automations": watched})


def _prepared_store(buckets: list[str]) -> list[str]:
    """Make the store's buckets, probe its write-once promise, and return who is enrolled."""
    from dataclasses import replace

    from fl_core.campaign.roster import latest_roster
    from tasks.object_store import S3Location, connect, ensure_bucket, require_write_once
    from tasks.settings import open_store, read_settings, store_location

    settings = read_settings()
    location = store_location(settings)
    if isinstance(location, S3Location):
        for name in (location.bucket, *buckets):
            ensure_bucket(connect(replace(location, bucket=name, prefix="")))
    store = open_store(settings)
    require_write_once(store)
    return list(latest_roster(store).names())


def schedule(  # noqa: PLR0913, PLR0917  one parameter per option of the command
    campaign: Annotated[str, typer.Argument(help="Id of a frozen campaign; empty shows all.")] = "",
    cron: Annotated[
        str, typer.Option(help="Minute, hour, day, month, weekday, such as '0 3 * * *'.")
    ] = "",
    timezone: Annotated[str, typer.Option(help="Time zone of the cron line.")] = "UTC",
    rounds: Annotated[
        int, typer.Option(min=0, max=9999, help="Rounds at each start; 0 until the campaign ends.")
    ] = 1,
    remove: Annotated[bool, typer.Option("--remove", help="Take the schedule away.")] = False,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Let rounds of a campaign start by the clock, or show what is scheduled.

    The limits of the sites hold as ever: a round that a site cannot pay for is one without it.

    Example: `fedloom schedule my-first --cron "0 3 * * *" --rounds 2`
    """
    # A campaign comes with exactly one of the two, and neither comes without a campaign.
    if bool(cron) + remove != bool(campaign):
        raise CampaignError(
            "give a campaign with --cron or with --remove, or nothing to see what is scheduled"
        )
    use_coordinator(home)
    from flows.schedules import Schedule, read_schedules, remove_schedule, write_schedule

    if campaign and remove:
        was_there = remove_schedule(campaign)
        console_err.print(f"{campaign}: {'no longer' if was_there else 'was not'} scheduled")
    elif cron:
        _require_frozen(campaign)
        write_schedule(Schedule(campaign, cron=cron, timezone=timezone, rounds=rounds))
    found = read_schedules()
    for each in found:
        state = "" if each.is_active else ", paused"
        plural = "" if each.rounds == 1 else "s"
        count = f"{each.rounds} round{plural}" if each.rounds else "until it ends"
        line = f"{each.campaign_id}: {each.cron} {each.timezone}, {count}{state}"
        console_err.print(line, markup=False)
    if json_output:
        print_json({"schedules": [asdict(each) for each in found]})


def _require_frozen(campaign: str) -> None:
    from fl_core.rounds.plan import read_assembly
    from tasks.settings import open_store, read_settings

    read_assembly(open_store(read_settings()), campaign)
