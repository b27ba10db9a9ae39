"""A real MLflow that is newer than the store: rounds that come out otherwise than it knows."""

from dataclasses import replace
from typing import Any

import pytest
from round_logs import make_campaign, released, skipped

from tasks.tracking import log_round
from tasks.tracking_client import connect
from tasks.tracking_history import FORGOTTEN, FORGOTTEN_TAG


@pytest.fixture
def client(mlflow_server: str) -> Any:
    return connect(mlflow_server)


def otherwise(campaign, n):
    """Round n with the adapter of another history: that of a later round."""
    other = released(campaign, n + 3)
    outcome = released(campaign, n).outcome.model_copy(
        update={"result_hash": other.outcome.result_hash}
    )
    return replace(released(campaign, n), outcome=outcome, adapter_files=other.adapter_files)


def versions_of(client, name):
    found = client.search_model_versions(f"name = '{name}'")
    return {v.version: v.tags for v in found}


def test_round_that_came_out_otherwise_gets_a_version_of_its_own(client, mlflow_server):
    campaign = make_campaign("otherwise")
    first = log_round(released(campaign), tracking_uri=mlflow_server)

    second = log_round(otherwise(campaign, 1), tracking_uri=mlflow_server)
    again = log_round(otherwise(campaign, 1), tracking_uri=mlflow_server)

    versions = versions_of(client, "otherwise")
    assert again == second
    assert (first.model_version, second.model_version) == ("1", "2")
    assert first.run_id != second.run_id
    assert versions["1"][FORGOTTEN_TAG] == FORGOTTEN
    assert versions["2"]["adapter_sha256"] == otherwise(campaign, 1).outcome.result_hash
    assert versions["2"]["fedloom.key"] == "otherwise/r1"
    assert FORGOTTEN_TAG not in versions["2"]
    assert client.get_registered_model("otherwise").aliases == {"candidate": "2"}


def test_round_that_came_out_alike_is_found_again(client, mlflow_server):
    campaign = make_campaign("alike")
    first = log_round(released(campaign), tracking_uri=mlflow_server)

    assert log_round(released(campaign), tracking_uri=mlflow_server) == first
    assert list(versions_of(client, "alike")) == ["1"]


def test_round_that_was_skipped_before_and_is_released_now_has_both_runs(client, mlflow_server):
    campaign = make_campaign("skipped-first")
    log_round(released(campaign, 1), tracking_uri=mlflow_server)
    before = log_round(skipped(campaign, 2), tracking_uri=mlflow_server)

    after = log_round(released(campaign, 2), tracking_uri=mlflow_server)

    old, new = client.get_run(before.run_id), client.get_run(after.run_id)
    assert old.data.tags[FORGOTTEN_TAG] == FORGOTTEN
    assert (old.data.tags["outcome"], new.data.tags["outcome"]) == ("skipped", "released")
    assert after.model_version == "2"


def test_setting_aside_that_was_cut_off_is_finished(client, mlflow_server):
    campaign = make_campaign("cut-off")
    first = log_round(released(campaign), tracking_uri=mlflow_server)
    # The version got its new key, then the process ended.
    client.set_model_version_tag("cut-off", "1", "fedloom.key", "cut-off/r1/forgotten-x")

    second = log_round(otherwise(campaign, 1), tracking_uri=mlflow_server)

    assert second.model_version == "2"
    assert client.get_run(first.run_id).data.tags["fedloom.key"].startswith("cut-off/r1/forgotten-")
