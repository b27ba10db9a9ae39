"""What the Prefect server watches by itself: silent runs, rounds that stay open, workers away.

A coordinator whose machine was lost reports nothing, and its run stays Running for ever. The
server sees the heartbeat of every run end, so it is the one to say so: the run is marked Crashed,
and running the campaign again finishes the round. Sessions at sites are left out on purpose. A site
whose line is cut trains on and uploads later; marking its run Crashed would end that training, and
``flows.dispatch`` judges sessions by their worker's sign of life.

A round has a deadline of its own in each campaign, which an automation cannot read. The one on open
rounds is therefore a long stop: beyond every campaign's deadline, something is stuck.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, DoNothing, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from fl_core.errors import CampaignError
from flows.prefect_names import EVALUATE_RELEASE, LOCK_CAMPAIGN, RUN_CAMPAIGN

ZOMBIE = "fedloom: silent run"
STUCK = "fedloom: round open for too long"
AWAY = "fedloom: worker away"

FEDERATED_ROUND = "federated-round"
_RUN = "prefect.flow-run"
_HEARTBEAT = f"{_RUN}.heartbeat"
# States by name, as their events carry them; a suspended run has no process and is silent.
_ENDINGS = frozenset(
    f"{_RUN}.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")
)
_RESTING = frozenset({f"{_RUN}.Suspended"})
_SILENT_S = 600
_STUCK_S = 86_400


@dataclass(frozen=True, slots=True)
class Watches:
    """How long the server waits, and whom it tells; None: as it was, at first as said here.

    Attributes:
        silent_s: A run of the coordinator is marked Crashed after so long without a heartbeat
            (600 s); well over the runs' ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``, by itself 180 s.
        stuck_s: A round that is open for so long is reported (a day); over every campaign's
            deadline.
        notify: ``type/name`` of a notification block, such as ``slack-webhook/ops``; empty
            (nobody): what happens is on the page of events only.
    """

    silent_s: int | None = None
    stuck_s: int | None = None
    notify: str | None = None


def watch(client: SyncPrefectClient, watches: Watches) -> list[str]:
    """Make the automations, or bring them up to date; return their names.

    Registration is repeated at every start, with nothing stated, so what was stated once stays:
    times, who is told, and that a person switched one off.

    Raises:
        CampaignError: There is no such notification block.
    """
    found = {name: client.read_automations_by_name(name)[:1] for name in (ZOMBIE, STUCK, AWAY)}
    stated = _automations(
        silent_s=watches.silent_s or _waits(found[ZOMBIE]) or _SILENT_S,
        stuck_s=watches.stuck_s or _waits(found[STUCK]) or _STUCK_S,
        block=_told(found[AWAY]) if watches.notify is None else _block(client, watches.notify),
    )
    for automation in stated:
        for kept in found[automation.name]:
            update = automation.model_copy(update={"enabled": kept.enabled})
            client.update_automation(kept.id, update)
        if not found[automation.name]:
            client.create_automation(automation)
    return list(found)


def _waits(found: list[Automation]) -> int | None:
    for automation in found:
        if isinstance(automation.trigger, EventTrigger):
            return int(automation.trigger.within.total_seconds())
    return None


def _told(found: list[Automation]) -> UUID | None:
    actions = [action for automation in found for action in automation.actions]
    blocks = [each.block_document_id for each in actions if isinstance(each, SendNotification)]
    return blocks[0] if blocks else None


def _automations(*, silent_s: int, stuck_s: int, block: UUID | None) -> list[AutomationCore]:
    """List the automations, with a notification to ``block`` where there is one."""
    crash = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message=f"no heartbeat for {silent_s} s; run the campaign again, it goes on",
        force=False,
    )
    return [
        AutomationCore(
            name=ZOMBIE,
            description="Marks a run of the coordinator Crashed when its process is gone.",
            trigger=_silence(
                (RUN_CAMPAIGN, FEDERATED_ROUND, EVALUATE_RELEASE, LOCK_CAMPAIGN), silent_s
            ),
            actions=[crash, *_notices(block, "a run ended without a word")],
        ),
        AutomationCore(
            name=STUCK,
            description="Reports a round that is open beyond every campaign's deadline.",
            trigger=_overdue(stuck_s),
            actions=_notices(block, "a round is open for too long") or [DoNothing()],
        ),
        AutomationCore(
            name=AWAY,
            description="Reports that no worker of a pool of fedloom is heard of.",
            trigger=EventTrigger(
                match={"prefect.resource.id": "prefect.work-pool.*"},
                expect={"prefect.work-pool.not-ready"},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=_notices(block, "a worker is away") or [DoNothing()],
        ),
    ]


def _silence(flow_names: tuple[str, ...], silent_s: int) -> EventTrigger:
    return EventTrigger(
        match={"prefect.resource.id": f"{_RUN}.*"},
        match_related=_of_flows(flow_names),
        after={_HEARTBEAT},
        expect={_HEARTBEAT, *_ENDINGS, *_RESTING},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=silent_s),
    )


def _overdue(stuck_s: int) -> EventTrigger:
    return EventTrigger(
        match={"prefect.resource.id": f"{_RUN}.*"},
        match_related=_of_flows((FEDERATED_ROUND,)),
        after={f"{_RUN}.Running"},
        expect=set(_ENDINGS),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=stuck_s),
    )


def _of_flows(names: tuple[str, ...]) -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "flow", "prefect.resource.name": list(names)}


def _notices(block: UUID | None, subject: str) -> list[ActionTypes]:
    if block is None:
        return []
    body = "{{ automation.name }}: {{ event.resource.name }} ({{ event.resource.id }})"
    return [SendNotification(block_document_id=block, subject=f"fedloom: {subject}", body=body)]


def _block(client: SyncPrefectClient, named: str) -> UUID | None:
    if not named:
        return None
    kind, _, name = named.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise CampaignError(
            f"prefect has no block {named!r}, expected type/name of a notification block; make it "
            "on the page of blocks"
        ) from error
