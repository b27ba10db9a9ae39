"""Sessions of several runs at a real Prefect server: whose end with a run, and what it costs."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Cancelling, Crashed, Pending, Running, State
from registered_api import registered_api
from session_states import ensure_sessions, session_runs

from fl_core.errors import RunCancelled
from flows import dispatch, registration


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with registered_api(tmp_path_factory.mktemp("prefect"), sites=("north", "south")) as made:
        yield made


def _set(client: SyncPrefectClient, run_id: str, *states: object) -> None:
    for state in states:
        client.set_flow_run_state(UUID(run_id), state)


def test_run_that_ends_stops_its_own_sessions_and_those_of_dead_runs(
    client: SyncPrefectClient,
) -> None:
    own, dead, other = (dispatch.start_campaign({"campaign_id": "stopped"}) for _ in range(3))
    _set(client, other, Pending(), Running())
    _set(client, dead, Pending(), Running(), Crashed())
    for site, run in (("north", dead), ("south", other)):
        ensure_sessions("stopped", sites=(site,), run=run)
    # Its worker may be cut off and go on with it: only the stop object ends it then.
    _set(client, session_runs("stopped")["north"].run_id, Pending(), Running(), Crashed())

    going_on = dispatch.runs_to_stop("stopped", run=own, is_over=False)
    at_the_end = dispatch.runs_to_stop("stopped", run=own, is_over=True)

    assert going_on == [own, dead]
    assert at_the_end == [own, *sorted([dead, other])]


def test_other_run_that_drives_a_campaign_is_named(client: SyncPrefectClient) -> None:
    run, other, waiting = (dispatch.start_campaign({"campaign_id": "shared"}) for _ in range(3))
    for run_id in (run, other):
        _set(client, run_id, Pending(), Running())
        client.update_flow_run(UUID(run_id), name="shared")
    client.update_flow_run(UUID(waiting), name="shared")

    assert dispatch.other_runs("shared", run=run) == [other]
    assert dispatch.other_runs("another", run=run) == []


@pytest.mark.parametrize("state", [Cancelling(), Cancelled()], ids=["cancelling", "cancelled"])
def test_watch_ends_when_a_person_cancels_one_of_its_runs(
    client: SyncPrefectClient, state: State
) -> None:
    run_id = dispatch.start_campaign({"campaign_id": "watched"})
    _set(client, run_id, Pending(), Running())
    watch = dispatch.SessionWatch("watched", sites=("north",), run=run_id, watched=(run_id,))
    watch()

    _set(client, run_id, Cancelling(), *([state] if state.is_final() else []))

    with pytest.raises(RunCancelled, match="its round stays open"):
        watch()


@pytest.mark.parametrize("count", [2, 5, 50])
def test_looking_after_sessions_costs_three_requests_however_many_sites(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    sites = [f"crowd-{count}-{n:02d}" for n in range(count)]
    registration.register(sites=sites)
    watch = dispatch.SessionWatch(f"crowd-{count}", sites=sites, run="r1")
    watch()
    asked: list[str] = []
    send = SyncPrefectClient.request

    def counted(self, method, path, *args, **kwargs):
        asked.append(path)
        return send(self, method, path, *args, **kwargs)

    monkeypatch.setattr(SyncPrefectClient, "request", counted)

    watch()

    # Runs in hand in the sites' pools, and this campaign's sessions; watched runs would be a third.
    assert asked == ["/flow_runs/filter", "/flow_runs/filter"]
