"""A site's disk is set back between two campaigns, over real servers: found, refused, recovered."""

import shutil

import pytest

from tests.e2e.federation import SITES, Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PARTS = ("ledger", "outbox")


def run_one_round(federation: Federation, campaign_id: str) -> dict:
    file = federation.write_campaign(campaign_id, max_rounds=1, deadline_s=40)
    federation.approve(file)
    (only,) = federation.run(str(file))["rounds"]
    return only


def test_rule_14_restored_site_is_left_out_until_its_ledger_is_recovered(federation, tmp_path):
    home = federation.site_home("site-a")
    verify = ("ledger", "--home", str(federation.home), "--site", "site-a", "--verify")
    backup = [part for part in PARTS if (home / part).exists()]
    for part in backup:
        shutil.copytree(home / part, tmp_path / part)
    run_one_round(federation, "forgotten")
    whole = federation.json(*verify)["ledgers"][0]
    for part in PARTS:
        shutil.rmtree(home / part)
    for part in backup:
        shutil.copytree(tmp_path / part, home / part)

    broken = federation.fedloom(*verify, expect=1)
    without = run_one_round(federation, "without")
    federation.fedloom("ledger", "recover", "--home", str(federation.home), "--site", "site-a")
    right = run_one_round(federation, "right")
    after = federation.json(*verify)["ledgers"][0]

    assert "rolled back" in broken.stderr
    assert without["outcome"]["contributors"] == ["site-e"]
    assert right["outcome"]["contributors"] == list(SITES)
    n_entries = len(whole["entries"])
    assert after["entries"][:n_entries] == whole["entries"]
    assert [entry["kind"] for entry in after["entries"][n_entries:]] == ["reserve", "commit"]
    assert after["broken"] == ""
    assert [(w["is_away"], w["complaint"]) for w in after["witnesses"]] == [(False, "")] * 2
