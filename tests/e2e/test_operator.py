"""An operator holds an update, reads it, lets it go, pauses and leaves: over real servers."""

import pytest

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex
from tests.e2e.federation import SITES, Federation, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILES = ["budget.json", "manifest.json", "payload.safetensors"]


def outbox(federation: Federation, site: str) -> dict:
    home = str(federation.site_home(site))
    return federation.json("site", "outbox", "--home", home, "--last", "0")["outbox"]


def exchange(federation: Federation, site: str, campaign: str, number: int) -> dict | None:
    found = outbox(federation, site)["exchanges"]
    return next((e for e in found if (e["campaign"], e["round"]) == (campaign, number)), None)


def progress(federation: Federation, site: str, campaign: str, number: int) -> str:
    one = exchange(federation, site, campaign, number)
    return "" if one is None else one["progress"]


@pytest.fixture
def held(federation):
    """The policy of site-a asks for its operator's word while the test runs."""
    policy = federation.site_home("site-a") / "policy.toml"
    text = policy.read_text(encoding="utf-8")
    assert text.count("\nhold = false\n") == 1
    policy.write_text(text.replace("\nhold = false\n", "\nhold = true\n"), encoding="utf-8")
    yield
    policy.write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("held")
def test_held_update_leaves_after_its_operators_word_and_is_what_was_shown(federation):
    file = federation.write_campaign("held", max_rounds=1, quorum=2, deadline_s=240)
    federation.approve(file)
    running = federation.start("run", str(file), "--home", str(federation.home))
    wait_until(
        lambda: progress(federation, "site-a", "held", 1) == "held", what="site-a holds round 1"
    )
    shown = exchange(federation, "site-a", "held", 1)
    prefix = keys.update_prefix("held", 1, "site-a")
    before = federation.store().list(prefix)

    home = str(federation.site_home("site-a"))
    federation.fedloom("site", "approve", "held", "--round", "1", "--home", home, "--yes")
    code = running.wait(timeout=300)

    store = federation.store()
    (only,) = federation.status("held")["rounds"]
    requests = outbox(federation, "site-a")["requests"]
    sent = {r["what"]: r["sha256"] for r in requests if r["method"] == "PUT" and not r["kept"]}
    assert code == 0
    assert before == []
    assert only["outcome"]["contributors"] == list(SITES)
    for name in FILES:
        (promised,) = [f["sha256"] for f in shown["files"] if f["name"] == name]
        assert sha256_hex(store.get(prefix + name)) == promised == sent[prefix + name]


def test_site_that_has_left_says_so_once_and_is_asked_no_more(federation):
    file = federation.write_campaign("farewell", max_rounds=2, quorum=1)
    federation.approve(file)
    home = str(federation.site_home("site-e"))
    federation.fedloom("site", "leave", "farewell", "--home", home, "--yes")

    rounds = federation.run(str(file))["rounds"]

    answers = [one["answers"].get("site-e", {}) for one in rounds]
    view = outbox(federation, "site-e")
    assert [one["cohort"] for one in rounds] == [list(SITES), ["site-a"]]
    assert [one.get("reason") for one in answers] == ["left", None]
    assert view["left"] == ["farewell"]
    assert progress(federation, "site-e", "farewell", 1) == "declined"
    assert all(e["charge"] is None for e in view["exchanges"] if e["campaign"] == "farewell")


def test_paused_site_declines_and_takes_part_again_after_resume(federation):
    file = federation.write_campaign("paused", max_rounds=2, quorum=1)
    federation.approve(file)
    home = str(federation.site_home("site-a"))
    federation.fedloom("site", "pause", "--home", home, "--why", "backup")

    first = federation.run(str(file), "--rounds", "1")["rounds"][-1]
    federation.fedloom("site", "resume", "--home", home)
    second = federation.run("paused", "--rounds", "1")["rounds"][-1]

    assert first["answers"]["site-a"]["reason"] == "policy"
    assert first["outcome"]["contributors"] == ["site-e"]
    assert second["outcome"]["contributors"] == list(SITES)
