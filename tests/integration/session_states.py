"""Sessions as tests ask for them: have them looked after once, and see what there is of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.registration import api
from flows.session_watch import SessionWatch
from flows.sessions import FINAL, sessions_by_site, state_type


@dataclass(frozen=True, slots=True)
class SessionState:
    """The session run of a site that lives, or else the latest one.

    Attributes:
        run_id: Id of the flow run.
        state_type: Prefect's state type, such as ``RUNNING``.
        run: The campaign run it belongs to.
        attempts: Session runs of this campaign at this site so far.
    """

    run_id: str
    state_type: str
    run: str
    attempts: int


def ensure_sessions(campaign_id: str, *, sites: Sequence[str], run: str) -> None:
    """Have one live session per site, as one look of a coordinator that has just started."""
    SessionWatch(campaign_id, sites=sites, run=run)()


def session_runs(campaign_id: str) -> dict[str, SessionState]:
    """Return a session run per site that ever had one for this campaign."""
    with api() as client:
        by_site = sessions_by_site(client, campaign_id)
    found = {}
    for site, runs in by_site.items():
        live = [flow_run for flow_run in runs if state_type(flow_run) not in FINAL]
        chosen = [*runs, *live][-1]
        found[site] = SessionState(
            run_id=str(chosen.id),
            state_type=state_type(chosen),
            run=str(chosen.parameters.get("run", "")),
            attempts=len(runs),
        )
    return found
