"""Campaign runs as Prefect drives them: cancelled by a person, and started twice at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign_coordinators import Bench, bench_of, wait_for
from prefect.client.orchestration import SyncPrefectClient
from registered_api import registered_api

from fl_core.artifacts import keys
from fl_core.rounds.adapters import read_state
from fl_core.rounds.released_delta import read_release
from flows import dispatch
from tests.worlds import campaign_of

pytestmark = pytest.mark.slow

SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    with registered_api(tmp_path_factory.mktemp("prefect"), sites=SITES) as made:
        yield made


@pytest.fixture
def bench(
    client: SyncPrefectClient, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    with bench_of(campaign_of(id=request.param, max_rounds=2), client, tmp_path) as made:
        yield made


def sessions(bench: Bench) -> set[str]:
    return {bench.state(run.id) for run in bench.runs("site-session")}


def require_resumable(bench: Bench, ended: str) -> None:
    """The open round stayed open, its sessions are over, and another run finishes it."""
    assert bench.outcome(1) is None
    assert sessions(bench) == {"CANCELLED"}
    assert keys.stop(bench.campaign_id, ended) in bench.world.store.list("campaigns/")
    plan = bench.plan(1)

    with bench.answering():
        again = bench.start_coordinator(rounds=1)
        assert again.wait(120) == 0, bench.logs()

    assert bench.outcome(1).status == "released"
    assert bench.plan(1) == plan
    assert {work.trainings for work in bench.world.works.values()} == {1}


@pytest.mark.parametrize("bench", ["cancel-campaign"], indirect=True)
def test_campaign_that_a_person_cancels_ends_its_sessions_and_leaves_its_round_open(bench):
    bench.start_worker()
    run_id = dispatch.start_campaign({"campaign_id": bench.campaign_id})
    wait_for(lambda: len(bench.runs("site-session")) == 3, what="sessions start")
    (campaign_run,) = bench.runs("run-campaign")

    bench.cancel(campaign_run)
    wait_for(lambda: dispatch.run_state(run_id).is_final, what="the run ends")

    assert dispatch.run_state(run_id).state_type == "CANCELLED", bench.logs()
    wait_for(lambda: sessions(bench) == {"CANCELLED"}, what="sessions end")
    require_resumable(bench, run_id)


@pytest.mark.parametrize("bench", ["cancel-round"], indirect=True)
def test_round_that_a_person_cancels_ends_its_run_the_same_way(bench):
    process = bench.start_coordinator()
    wait_for(lambda: len(bench.runs("site-session")) == 3, what="sessions start")
    (round_run,) = bench.runs("federated-round")

    bench.cancel(round_run)
    process.wait(60)

    (campaign_run,) = bench.runs("run-campaign")
    assert bench.state(round_run.id) == "CANCELLED", bench.logs()
    assert bench.state(campaign_run.id) == "CANCELLED", bench.logs()
    require_resumable(bench, str(campaign_run.id))


@pytest.mark.parametrize("bench", ["twice"], indirect=True)
def test_campaign_that_is_started_twice_at_once_releases_every_round_once(bench):
    with bench.answering():
        both = [bench.start_coordinator() for _ in range(2)]
        ends = [process.wait(180) for process in both]

    store, assembly = bench.world.store, bench.world.assembly
    outcomes = [bench.outcome(number) for number in (1, 2)]
    assert ends == [0, 0], bench.logs()
    assert [outcome.status for outcome in outcomes] == ["released", "released"]
    assert outcomes[1].base_hash == outcomes[0].result_hash
    for number, outcome in enumerate(outcomes, start=1):
        before = read_state(store, assembly.campaign, outcome.base_hash).tensors()
        after = read_state(store, assembly.campaign, outcome.result_hash).tensors()
        released = read_release(store, bench.campaign_id, number)
        for name in before:
            assert (after[name] == before[name] + released[name]).all()
    # The first adapter and one per round: no second draw, no second release lies beside them.
    prefix = f"campaigns/{bench.campaign_id}/adapters/"
    adapters = {key.removeprefix(prefix).split("/")[0] for key in store.list(prefix)}
    assert len(adapters) == 3
    for site in SITES:
        reserves = [e for e in bench.world.sites[site].ledger.entries() if e.kind == "reserve"]
        assert len(reserves) == bench.world.works[site].trainings == 2
