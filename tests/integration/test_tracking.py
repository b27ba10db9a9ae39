"""Rounds on a real MLflow server."""

import re
import socket
from typing import Any

import pytest
from round_logs import NO_PRIVACY, digest_of, make_campaign, released, skipped

from fl_core.errors import ObjectCorrupt, StoreError, StoreUnavailable
from tasks.tracking import close_campaign, log_round, write_round
from tasks.tracking_client import connect
from tasks.tracking_view import VIEW_TAG


class Crash(Exception):
    """The process ends here."""


class CrashingClient:
    """A real client that ends the process before its n-th call, so after the one before it."""

    def __init__(self, client: Any, *, at: int = 0) -> None:
        self._client, self._at = client, at
        self.calls = 0

    @property
    def tracking_uri(self) -> str:
        return self._client.tracking_uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._at:
                raise Crash
            return method(*args, **kwargs)

        return call


@pytest.fixture
def client(mlflow_server: str) -> Any:
    return connect(mlflow_server)


_RUN = re.compile(r"experiments/[0-9]+/runs/[0-9a-f]{32}")


def content(client: Any, name: str) -> dict[str, Any]:
    """Everything MLflow holds of one registered model and its experiment, without its own ids."""
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], run_view_type=3)
    versions = client.search_model_versions(f"name = '{name}'")
    history = {
        (run.info.run_name, key): [
            (point.step, point.value, point.timestamp)
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        for run in runs
        for key in run.data.metrics
    }
    models = client.search_logged_models([experiment.experiment_id])
    return {
        "runs": sorted((r.info.run_name, r.info.status, r.info.end_time) for r in runs),
        "versions": [(v.version, v.tags, _RUN.sub("RUN", v.description)) for v in versions],
        "aliases": client.get_registered_model(name).aliases if versions else {},
        "models": sorted((m.name, str(m.status)) for m in models),
        "history": dict(sorted(history.items())),
    }


def test_round_logged_twice_leaves_one_run_one_version_and_one_point(client, mlflow_server):
    campaign = make_campaign("twice")
    first = log_round(released(campaign), tracking_uri=mlflow_server)
    before = content(client, "twice")

    second = log_round(released(campaign), tracking_uri=mlflow_server)

    assert second == first
    assert content(client, "twice") == before
    assert [run[0] for run in before["runs"]] == ["twice", "twice r001"]
    assert [version[0] for version in before["versions"]] == ["1"]
    assert all(len(points) == 1 for points in before["history"].values())


def test_every_point_has_the_closing_time_of_its_round(client, mlflow_server):
    logged = log_round(released(make_campaign("times")), tracking_uri=mlflow_server)

    history = content(client, "times")["history"]
    run = client.get_run(logged.run_id).info

    # START is 2026-09-01T10:00:00Z = 1788256800 s; round 1 opens 30 s and closes 51 s later.
    assert {point[2] for points in history.values() for point in points} == {1788256851000}
    assert (run.start_time, run.end_time) == (1788256830000, 1788256851000)


def test_campaign_run_carries_the_curves_and_the_frontier(client, mlflow_server):
    campaign = make_campaign("curves")
    for n in (1, 2):
        logged = log_round(released(campaign, n), tracking_uri=mlflow_server)

    parent = client.get_run(logged.parent_run_id)
    accuracy = client.get_metric_history(logged.parent_run_id, "eval/accuracy")
    frontier = client.get_metric_history(logged.parent_run_id, "frontier/accuracy")

    assert [(p.step, p.value) for p in accuracy] == [(1, 0.61), (2, 0.62)]
    # Worst site in round n: epsilon n + 0.5, so the step is 1500 and 2500.
    assert [(p.step, p.value) for p in frontier] == [(1500, 0.61), (2500, 0.62)]
    assert parent.data.metrics["dp/epsilon"] == 2.5
    assert parent.data.metrics["dp/epsilon_left"] == 8.5
    assert parent.data.metrics["site/site-b/epsilon"] == 2.25
    assert parent.data.metrics["round/seconds"] == 21
    assert parent.data.tags["fedloom.key"] == "curves"


def test_view_that_a_person_changed_stays_as_it_is(client, mlflow_server):
    campaign = make_campaign("own-view")
    logged = log_round(released(campaign), tracking_uri=mlflow_server)
    client.set_experiment_tag(logged.experiment_id, VIEW_TAG, "changed")

    log_round(released(campaign, 2), tracking_uri=mlflow_server)

    assert client.get_experiment(logged.experiment_id).tags[VIEW_TAG] == "changed"


def test_version_says_its_origin_and_its_guarantee(client, mlflow_server):
    campaign = make_campaign("origin")
    log_round(released(campaign, 1), tracking_uri=mlflow_server)
    log = released(campaign, 2)

    logged = log_round(log, tracking_uri=mlflow_server)

    tags = client.get_model_version("origin", logged.model_version).tags
    assert logged.model_uri == "models:/origin/2"
    assert tags["fedloom.key"] == "origin/r2"
    assert (tags["round"], tags["parent_version"]) == ("2", "1")
    assert (tags["epsilon"], tags["delta"]) == ("2.5", "1e-05")
    assert tags["epsilon_per_site"] == (
        "site-a 2.5 (delta 1e-05, pld), site-b 2.25 (delta 1e-05, pld)"
    )
    assert tags["guarantee"].startswith("record level: epsilon <= 8 at delta 1e-05")
    assert tags["base_sha256"] == digest_of("base")
    assert tags["adapter_sha256"] == log.outcome.result_hash
    assert tags["gate_suite_sha256"] == digest_of("gate")
    assert tags["store_uri"] == log.adapter_uri
    assert tags["contributors"] == "site-a, site-b"
    assert tags["code_version"] == log.code_version
    assert client.get_registered_model("origin").aliases == {"candidate": "2"}


def test_round_logged_late_does_not_take_the_candidate_back(client, mlflow_server):
    campaign = make_campaign("late")
    for n in (2, 1):
        log_round(released(campaign, n), tracking_uri=mlflow_server)

    candidate = client.get_model_version_by_alias("late", "candidate")

    assert candidate.tags["round"] == "2"


@pytest.mark.parametrize(("status", "run_status"), [("skipped", "KILLED"), ("failed", "FAILED")])
def test_round_without_release_has_a_run_with_its_reason_and_no_version(
    client, mlflow_server, status, run_status
):
    name = f"without-{status}"
    logged = log_round(skipped(make_campaign(name), status=status), tracking_uri=mlflow_server)

    run = client.get_run(logged.run_id)

    assert run.info.status == run_status
    assert run.data.tags["reason"] == "1 of 3 sites answered, quorum is 2"
    assert "eval/accuracy" not in run.data.metrics
    assert run.data.metrics["dp/epsilon"] == 1.5  # the sites charged before the round fell through
    assert logged.model_version is None
    assert client.search_model_versions(f"name = '{name}'") == []


def test_no_privacy_shows_its_reason_and_no_epsilon(client, mlflow_server):
    campaign = make_campaign("open-rows", privacy=NO_PRIVACY)
    logged = log_round(released(campaign), tracking_uri=mlflow_server)

    metrics = client.get_run(logged.parent_run_id).data.metrics
    version = client.get_model_version("open-rows", logged.model_version)

    assert metrics["dp/enabled"] == 0
    assert not [name for name in metrics if "epsilon" in name or name.startswith("frontier")]
    assert version.tags["guarantee"] == "none: rows are public, nothing to protect"
    assert "epsilon" not in version.tags
    assert "no privacy guarantee" in version.description


def test_note_of_the_campaign_lists_rounds_newest_first_and_links_the_charts(client, mlflow_server):
    campaign = make_campaign("note")
    log_round(released(campaign, 1), tracking_uri=mlflow_server)
    logged = log_round(skipped(campaign, 2), tracking_uri=mlflow_server)

    note = client.get_run(logged.parent_run_id).data.tags["mlflow.note.content"]
    rows = [line for line in note.splitlines() if line.startswith(("| 1 ", "| 2 "))]

    assert logged.chart_url == (
        f"{mlflow_server}/#/experiments/{logged.experiment_id}/runs"
        "?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=fedloom"
    )
    assert logged.chart_url in note
    assert rows == [
        "| 2 | - | - | 2.50 | 8.50 | - | skipped: 1 of 3 sites answered, quorum is 2 |",
        "| 1 | 0.610 | 0.410 | 1.50 | 9.50 | 1 | released |",
    ]


def test_last_round_and_an_early_end_close_the_campaign(client, mlflow_server):
    ended = make_campaign("ended")
    whole = make_campaign("whole", max_rounds=1)
    early = log_round(released(ended), tracking_uri=mlflow_server)
    last = log_round(released(whole), tracking_uri=mlflow_server)
    assert client.get_run(early.parent_run_id).info.status == "RUNNING"

    closed = released(ended).outcome.closed
    close_campaign(ended, closed=closed, reason="budget spent", tracking_uri=mlflow_server)

    run = client.get_run(early.parent_run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1788256851000)
    assert run.data.tags["ended"] == "budget spent"
    assert client.get_run(last.parent_run_id).info.status == "FINISHED"


def test_files_of_another_adapter_make_no_version(client, mlflow_server):
    campaign = make_campaign("other-files")
    log = released(campaign, adapter_files=released(campaign, 2).adapter_files)

    with pytest.raises(ObjectCorrupt, match="hash to"):
        log_round(log, tracking_uri=mlflow_server)

    assert client.search_model_versions("name = 'other-files'") == []


# mlflow's own settings wait about four minutes for each call.
@pytest.mark.timeout(60)
def test_server_away_is_known_soon_and_may_be_retried():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(StoreUnavailable) as caught:
            log_round(released(make_campaign("away")), tracking_uri=address)

    assert caught.value.retryable


def test_no_address_is_refused_instead_of_writing_a_local_file(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    with pytest.raises(StoreError, match="no address"):
        log_round(released(make_campaign("nowhere")))


def test_deleted_experiment_is_refused_with_the_remedy(client, mlflow_server):
    campaign = make_campaign("gone")
    logged = log_round(released(campaign), tracking_uri=mlflow_server)
    client.delete_experiment(logged.experiment_id)

    with pytest.raises(StoreError) as caught:
        log_round(released(campaign), tracking_uri=mlflow_server)

    assert not caught.value.retryable
    assert f"--experiment-id {logged.experiment_id}" in caught.value.hint


def test_doubles_of_a_lost_answer_are_removed(client, mlflow_server):
    campaign = make_campaign("doubles")
    first = log_round(released(campaign), tracking_uri=mlflow_server)
    version = client.get_model_version("doubles", first.model_version)
    # What a retried create leaves behind when the first answer was lost.
    tags = client.get_run(first.run_id).data.tags
    client.create_run(first.experiment_id, tags=tags)
    client.create_model_version(
        "doubles",
        version.source,
        tags=version.tags,
        model_id=version.source.split("/")[-1],
        await_creation_for=0,
    )

    log_round(released(campaign), tracking_uri=mlflow_server)
    again = log_round(released(campaign), tracking_uri=mlflow_server)

    runs = client.search_runs([first.experiment_id], "tags.`fedloom.key` = 'doubles/r1'")
    assert [run.info.run_id for run in runs] == [again.run_id]
    assert again.model_version == "1"
    assert len(client.search_model_versions("name = 'doubles'")) == 1


@pytest.fixture(scope="module")
def uncut(mlflow_server: str) -> tuple[int, str]:
    """Calls of one uninterrupted logging of a first round, and what MLflow holds afterwards."""
    real = connect(mlflow_server)
    counting = CrashingClient(real)
    write_round(counting, released(make_campaign("uncut")))
    return counting.calls, renamed(content(real, "uncut"), "uncut")


def renamed(found: dict[str, Any], name: str) -> str:
    """Text of a content in which nothing is left of the campaign's own name."""
    return repr(found).replace(make_campaign(name).digest, "DIGEST").replace(name, "NAME")


def test_crash_at_any_call_is_finished_without_doubles(uncut, client):
    calls, expected = uncut
    assert calls > 15

    for at in range(1, calls + 1):
        name = f"cut-{at}"
        log = released(make_campaign(name))
        with pytest.raises(Crash):
            write_round(CrashingClient(client, at=at), log)

        write_round(client, log)

        assert renamed(content(client, name), name) == expected, name


def test_note_links_the_statement_of_the_latest_version_and_the_plan_is_kept_once(
    client, mlflow_server
):
    campaign = make_campaign("linked", max_rounds=3)
    log_round(released(campaign, 1), tracking_uri=mlflow_server)
    logged = log_round(released(campaign, 2), tracking_uri=mlflow_server)
    log_round(skipped(campaign, 3), tracking_uri=mlflow_server)

    note = client.get_run(logged.parent_run_id).data.tags["mlflow.note.content"]
    plan = [file.path for file in client.list_artifacts(logged.parent_run_id, "plan")]

    assert f"[privacy statement of version 2]({logged.statement_url})" in note
    assert logged.statement_url == (
        f"{mlflow_server}/#/experiments/{logged.experiment_id}/runs/{logged.run_id}"
        "/artifacts/statement.html"
    )
    version = client.get_model_version("linked", logged.model_version)
    assert version.description.endswith(f" **[Privacy statement]({logged.statement_url})**")
    assert sorted(plan) == ["plan/epsilon.png", "plan/plan.json"]
