"""An update that is held: it waits for its operator's word, and nothing tells that it does."""

import json
import re
import shlex
import threading
import time
from datetime import UTC, datetime
from html import unescape

import pytest
from site_folders import SITE, site_folder
from typer.testing import CliRunner
from worlds import NO_PRIVACY, campaign_of

from fl_core.artifacts.documents import sha256_hex
from fl_core.campaign.specs import CohortRule
from fl_core.errors import CampaignError
from flows.cli.main import app
from flows.cli.output import console_err
from tasks import site_decisions
from tasks.outbox_page import to_page
from tasks.outbox_view import read_outbox
from tasks.site_decisions import allow, approve_round, find_campaign, leave, pause, refuse

FILES = ["budget.json", "manifest.json", "payload.safetensors"]


def fedloom(*words, stdin=None):
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, [*words], input=stdin)


def shown(site, **options):
    return read_outbox(site.home, **options)


@pytest.fixture
def site(tmp_path):
    return site_folder(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """A hold looks into the folder and at the store many times a second."""
    monkeypatch.setattr(site_decisions, "LOOK_S", 0.02)
    monkeypatch.setattr(site_decisions, "ASK_S", 0.05)


def answering(site, number=1):
    """Answer a round in a thread, as a session does, and return thread and answers."""
    answers = []
    plan = site.plan(number)
    thread = threading.Thread(target=lambda: answers.append(site.session.answer(plan)))
    thread.start()
    return thread, answers


class Listened:
    """A campaigns' store as a site reaches it, by somebody who notes when it is asked for what."""

    def __init__(self, store):
        self.inner, self.asked = store, []

    def listens(self, what):
        self.asked.append((datetime.now(UTC), what))
        return False

    def __getattr__(self, name):
        def asks(*given, **named):
            self.listens((name, *given))
            return getattr(self.inner, name)(*given, **named)

        return asks


def wait_for(progress, site):
    until = time.monotonic() + 60
    while not any(one.progress == progress for one in shown(site).exchanges):
        assert time.monotonic() < until, f"waited in vain for {progress}"
        time.sleep(0.05)


@pytest.mark.usefixtures("quick")
def test_held_update_leaves_when_its_operator_approves_exactly_it(site):
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)
    before = site.left()

    result = fedloom(
        "site", "approve", "tiny", "--round", "1", "--home", str(site.home.root), "--yes", "--json"
    )  # fmt: skip
    thread.join(60)

    (one,) = shown(site).exchanges
    assert result.exit_code == 0, result.output
    assert all(file.sha256 in result.stderr for file in one.files)
    assert (before, site.left()) == ([], FILES)
    assert answers == ["uploaded"]
    assert one.progress == "uploaded"
    decided = json.loads(result.stdout)["decision"]
    manifest = site.store.get("campaigns/tiny/rounds/0001/updates/a/manifest.json")
    assert decided["manifest_sha256"] == sha256_hex(manifest)


@pytest.mark.usefixtures("quick")
def test_commands_that_are_shown_hold_in_any_folder(tmp_path, monkeypatch):
    site = site_folder(tmp_path / "our site's")
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)
    pause(site.home, why="backup")
    monkeypatch.chdir(tmp_path / "our site's")
    # A terminal in which no such command fits in a line.
    monkeypatch.setattr(console_err, "width", 80)
    told = fedloom("site", "outbox", "--home", "site").stderr
    page = unescape(to_page(shown(site), made=datetime.now(UTC)))
    commands = re.findall(r"fedloom (site (?:resume|approve) .+?/site')", told)
    monkeypatch.chdir("/")

    results = [fedloom(*shlex.split(command), stdin="y\n") for command in commands]
    thread.join(60)

    assert [command.split()[1] for command in commands] == ["resume", "approve"]
    assert [result.exit_code for result in results] == [0, 0]
    assert all(f"fedloom {command}" in page for command in commands)
    assert answers == ["uploaded"]
    assert not shown(site).is_paused


@pytest.mark.usefixtures("quick")
def test_held_update_that_its_operator_does_not_want_stays_and_nobody_is_told(site):
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)

    kept = fedloom(
        "site", "approve", "tiny", "--round", "1", "--home", str(site.home.root), stdin="n\n"
    )
    fedloom("site", "refuse", "tiny", "--round", "1", "--home", str(site.home.root))
    thread.join(60)

    assert kept.exit_code != 0
    assert answers == ["failed"]
    assert site.left() == []
    assert shown(site).exchanges[0].progress == "withheld"


@pytest.mark.usefixtures("quick")
def test_hold_ends_with_the_deadline_and_the_lock_is_free_meanwhile(tmp_path):
    site = site_folder(tmp_path, campaign_of(sites=(SITE,), cohort=CohortRule(deadline_s=3.0)))
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)

    site.session.settle()
    thread.join(60)

    assert answers == ["failed"]
    assert site.left() == []
    with pytest.raises(CampaignError, match="could be approved until"):
        approve_round(site.home, find_campaign(site.home, "tiny"), 1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "campaign",
    [
        campaign_of(sites=(SITE,), privacy=NO_PRIVACY),
        campaign_of(sites=(SITE,), cohort=CohortRule(upload_after_s=3.0)),
    ],
    ids=["no guarantee", "after the upload time"],
)
def test_hold_ends_when_the_round_goes_on_without_the_site(tmp_path, campaign):
    site = site_folder(tmp_path, campaign)
    site.set_policy("\nwithout_guarantee = false\n", "\nwithout_guarantee = true\n")
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)

    site.store.put_once("campaigns/tiny/rounds/0001/collected.json", b"{}")
    thread.join(60)

    assert answers == ["failed"]
    assert "went on" in shown(site).exchanges[0].why


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("cohort", "n_asked"),
    [(CohortRule(deadline_s=6.0, upload_after_s=5.0), 1), (CohortRule(deadline_s=3.0), 0)],
    ids=["upload time", "no upload time"],
)
def test_rule_19_held_update_asks_nothing_before_the_upload_time(tmp_path, cohort, n_asked):
    site = site_folder(tmp_path, campaign_of(sites=(SITE,), cohort=cohort))
    site.hold()
    session, plan = site.session, site.plan()
    session.store = store = Listened(session.store)
    session.is_over = lambda: store.listens("is over")
    site.work.on_train = store.asked.clear

    answer = session.answer(plan)

    times = [time for time, _ in store.asked]
    assert answer == "failed"
    assert all(time >= plan.upload_at for time in times)
    assert len(times) >= n_asked


@pytest.mark.usefixtures("quick")
def test_hold_ends_with_the_campaign_run_and_the_next_run_asks_again(tmp_path):
    cohort = CohortRule(upload_after_s=3.0)
    site = site_folder(tmp_path, campaign_of(sites=(SITE,), cohort=cohort))
    site.hold()
    session, plan, answers = site.session, site.plan(), []
    session.is_over = lambda: bool(shown(site).exchanges)
    thread = threading.Thread(target=lambda: answers.append(session.answer(plan)))
    thread.start()
    thread.join(60)
    between = shown(site).exchanges[0].progress

    approve_round(site.home, find_campaign(site.home, "tiny"), 1)
    again = site.session.answer(plan)

    assert (answers, between, again) == (["failed"], "held", "uploaded")
    assert site.work.trainings == 1


@pytest.mark.usefixtures("quick")
def test_refusal_that_is_taken_back_in_time_leaves_the_update_to_be_approved(site):
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)
    tiny = find_campaign(site.home, "tiny")
    refuse(site.home, tiny, round_number=1, why="")
    thread.join(60)
    with pytest.raises(CampaignError, match="refused the round"):
        approve_round(site.home, tiny, 1)

    allow(site.home, tiny, round_number=1, why="")
    approve_round(site.home, tiny, 1)

    assert answers == ["failed"]
    assert site.answer() == "uploaded"
    assert shown(site).exchanges[0].progress == "uploaded"


@pytest.mark.usefixtures("quick")
def test_update_of_a_campaign_that_was_left_is_not_said_to_come_back_by_an_undo(site):
    site.hold()
    thread, _ = answering(site)
    wait_for("held", site)
    tiny = find_campaign(site.home, "tiny")
    leave(site.home, tiny, why="")
    thread.join(60)

    with pytest.raises(CampaignError, match="has left the campaign") as caught:
        approve_round(site.home, tiny, 1)

    assert "final" in caught.value.hint
    assert "--undo" not in caught.value.hint


@pytest.mark.usefixtures("quick")
def test_hold_that_the_owner_takes_out_of_the_policy_ends_at_once(site):
    site.hold()
    thread, answers = answering(site)
    wait_for("held", site)

    site.set_policy("\nhold = true\n", "\nhold = false\n")
    thread.join(60)

    assert answers == ["uploaded"]
