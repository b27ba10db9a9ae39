"""A campaign goes on while a site changes its keys and another one leaves and comes back.

Real servers, real workers, which are never restarted: what opens connections and what signs is
read again when it changes.
"""

import subprocess

import pytest

from tests.e2e.federation import SITES, Federation, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CAMPAIGN = "changing-hands"


def one_round(federation: Federation, file_or_id: str) -> dict:
    return federation.run(file_or_id, "--rounds", "1")["rounds"][-1]


def change_keys(federation: Federation, site: str) -> None:
    home, own = str(federation.home), str(federation.site_home(site))
    federation.fedloom("site", "rotate", "--home", own)
    federation.fedloom("rotate", f"{own}/rotation.json", "--home", home, "--yes")
    wait_until(lambda: is_finished(federation, own), what="the gateway to know the next keys")


def is_finished(federation: Federation, own: str) -> bool:
    done = subprocess.run(
        federation.command("site", "rotate", "--finish", "--home", own),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=federation.folder,
        env=federation.env,
    )
    return done.returncode == 0


def state_of(federation: Federation, site: str) -> dict:
    found = federation.json("sites", "--home", str(federation.home))["sites"]
    return next(each for each in found if each["site"] == site)


def test_campaign_goes_on_over_other_keys_and_over_a_site_that_leaves_and_comes_back(federation):
    file = federation.write_campaign(CAMPAIGN, max_rounds=4)
    federation.approve(file)
    home = str(federation.home)
    leaver = str(federation.site_home("site-e") / "enrol.json")
    before = state_of(federation, "site-a")["fingerprint"]

    rounds = [one_round(federation, str(file))]
    change_keys(federation, "site-a")
    rounds.append(one_round(federation, CAMPAIGN))
    federation.fedloom("revoke", "site-e", "--home", home, "--yes", "--reason", "leaves")
    left = state_of(federation, "site-e")
    rounds.append(one_round(federation, CAMPAIGN))
    federation.fedloom("enrol", leaver, "--home", home, "--yes", "--replace")
    rounds.append(one_round(federation, CAMPAIGN))

    contributors = [each["outcome"]["contributors"] for each in rounds]
    assert contributors == [list(SITES), list(SITES), ["site-a"], list(SITES)]
    after = state_of(federation, "site-a")
    assert after["fingerprint"] != before
    assert (left["state"], left["reason"]) == ("revoked", "leaves")
    assert after["online"]
    assert after["complaints"] == []
    ledger = federation.json("ledger", "--home", home, "--site", "site-a", "--verify")["ledgers"][0]
    assert ledger["broken"] == ""
    assert [entry["kind"] for entry in ledger["entries"]].count("rotated") == 1
    for number in (1, 2, 3, 4):
        words = ("--campaign", CAMPAIGN, "--round", str(number), "--verify", "--home", home)
        federation.fedloom("statement", *words)
