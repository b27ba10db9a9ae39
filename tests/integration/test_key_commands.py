"""Keys change, are lost and withdrawn by the real commands, over a site's own folder."""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from typer.testing import CliRunner

from fl_core.artifacts import keys
from fl_core.artifacts.local import LocalStore
from fl_core.campaign.roster import latest_roster
from fl_core.errors import CampaignError, FedloomError, LedgerConflict, LedgerCorrupt
from fl_core.privacy.policy import approve
from fl_core.rounds.collection import examine_site
from fl_core.rounds.plan import open_campaign, open_round
from fl_core.rounds.site_round import client_round
from fl_core.updates.outbox import exclusive
from fl_core.updates.signing import public_hex, read_key
from flows.cli.main import app
from tasks.enrolment import admit, read_enrolment
from tasks.gateway_access import ROTATION
from tasks.key_change import NEXT
from tasks.site_config import SiteHome, open_site, read_site_config
from tests.worlds import FakeWork, campaign_of

SITE = "north"
NOBODY = "http://127.0.0.1:9/api"


@dataclass(frozen=True)
class Ended:
    """What a command left behind: its output, and the error that `fedloom` would end with."""

    stdout: str
    stderr: str
    error: FedloomError | None

    @property
    def document(self):
        return json.loads(self.stdout)


def fedloom(*words) -> Ended:
    found = CliRunner().invoke(app, [str(word) for word in words])
    error = found.exception
    if error is not None and not isinstance(error, FedloomError):
        raise error
    return Ended(found.stdout, found.stderr, error)


@dataclass
class Place:
    """A made and enrolled site, with the campaign's store beside it."""

    folder: Path

    @property
    def home(self) -> SiteHome:
        return SiteHome(self.folder / "site")

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.folder / "store")

    @property
    def request(self) -> Path:
        return self.home.root / ROTATION

    def init(self, home="site"):
        return fedloom(
            *("site", "init", SITE, "--data", self.folder / "rows.csv", "--epsilon", 20),
            *("--delta", 1e-5, "--store", f"file://{self.folder}/store"),
            *("--home", self.folder / home, "--witness", self.folder / "other-disk" / "witness"),
        )

    def round(self, number):
        """Take part in a round; return what the site did and what the coordinator made of it."""
        campaign = campaign_of(sites=(SITE,))
        assembly = open_campaign(self.store, campaign)
        approve(self.home.store("approvals"), campaign, now=datetime.now(UTC))
        plan = open_round(assembly, self.store, round_number=number, now=datetime.now(UTC))
        work = FakeWork(assembly.shapes(number), rng=np.random.default_rng(number))
        site = open_site(self.home, read_site_config(self.home))
        done = client_round(site, work, assembly=assembly, store=self.store, plan=plan)
        return done.status, examine_site(assembly, self.store, plan, site=SITE)

    def kinds(self):
        site = open_site(self.home, read_site_config(self.home))
        return [entry.kind for entry in site.ledger.entries()]

    def at_site(self, *words):
        return fedloom("site", "rotate", "--home", self.home.root, "--json", *words)

    def entry(self):
        return latest_roster(self.store).entry(SITE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\nthe pump leaks,yes\nall is well,no\n")
    monkeypatch.setenv("FEDLOOM_STORE", (tmp_path / "store").as_uri())
    # Nobody listens there: what only Prefect knows is missing, and nothing else.
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    made = Place(tmp_path)
    assert made.init().error is None
    admit(made.store, read_enrolment(made.home.enrolment))
    with temporary_settings({PREFECT_API_URL: NOBODY, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield made


def test_keys_change_between_two_rounds_and_the_ledger_goes_on(place):
    place.round(1)
    old = public_hex(read_key(place.home.key))

    asked = place.at_site()
    admitted = fedloom("rotate", place.request, "--yes", "--json")
    finished = place.at_site("--finish")
    done, answer = place.round(2)

    new = public_hex(read_key(place.home.key))
    assert [each.error for each in (asked, admitted, finished)] == [None] * 3
    assert asked.document["fingerprint"] == admitted.document["fingerprint"]
    assert place.entry().signing_key == new != old
    assert (done, answer.status) == ("uploaded", "accepted")
    assert place.kinds() == ["genesis", "reserve", "commit", "rotated", "reserve", "commit"]
    assert read_enrolment(place.home.enrolment).signing_key == new
    # Nothing of the old key is left, and nothing is pending.
    assert not (place.home.root / NEXT).exists()
    assert not place.request.exists()
    ledger = fedloom("ledger", "--home", place.home.root, "--verify", "--json")
    assert ledger.error is None
    assert not ledger.document["ledgers"][0]["broken"]


def test_site_works_with_its_old_keys_until_it_finishes(place):
    place.at_site()

    early = place.at_site("--finish")
    done, answer = place.round(1)

    assert isinstance(early.error, CampaignError)
    assert "has not admitted" in str(early.error)
    assert (done, answer.status) == ("uploaded", "accepted")
    assert place.kinds() == ["genesis", "reserve", "commit"]


def test_request_asked_for_again_is_the_one_that_is_pending(place):
    first = place.at_site()
    before = place.request.read_bytes()

    again = place.at_site()

    assert again.document == first.document
    assert place.request.read_bytes() == before


def test_change_that_was_interrupted_after_the_ledger_is_finished_by_running_it_again(place):
    place.round(1)
    place.at_site()
    fedloom("rotate", place.request, "--yes")
    config, new = read_site_config(place.home), read_key(place.home.root / NEXT / "key.pem")
    site = open_site(place.home, config)
    # The process dies here: the ledger names the next key, and key.pem is the old one.
    site.ledger.hand_over(new)
    with pytest.raises(LedgerCorrupt, match="site rotate --finish"):
        place.round(2)

    finished = place.at_site("--finish")
    done, answer = place.round(2)

    assert finished.error is None
    assert (done, answer.status) == ("uploaded", "accepted")
    assert place.kinds().count("rotated") == 1


def test_keys_do_not_change_in_the_middle_of_a_round(place):
    place.at_site()
    fedloom("rotate", place.request, "--yes")
    old = place.home.key.read_bytes()

    with exclusive(place.home.root / "outbox.lock"):
        refused = place.at_site("--finish")

    assert isinstance(refused.error, LedgerConflict)
    assert place.home.key.read_bytes() == old
    assert place.at_site("--finish").error is None


def test_request_that_somebody_changed_is_refused(place, tmp_path):
    place.at_site()
    request = json.loads(place.request.read_bytes())
    stranger = Place(tmp_path)
    stranger.init("stranger")
    theirs = json.loads((tmp_path / "stranger" / "enrol.json").read_bytes())["signing_key"]
    before = latest_roster(place.store)

    for change in ({"new_key": theirs}, {"site": "south"}, {"old_key": theirs}):
        place.request.write_text(json.dumps(request | change))
        refused = fedloom("rotate", place.request, "--yes")
        assert isinstance(refused.error, CampaignError)
        assert "signature" in str(refused.error)

    assert latest_roster(place.store) == before


def test_lost_key_needs_a_word_of_a_person_and_keeps_what_was_spent(place):
    place.round(1)
    place.home.key.unlink()

    asked = place.at_site("--lost-key")
    refused = fedloom("rotate", place.request, "--yes")
    admitted = fedloom("rotate", place.request, "--yes", "--replace")
    finished = place.at_site("--finish")
    done, answer = place.round(2)

    assert asked.error is None
    assert "LOST its signing key" in asked.stderr
    assert "its key is lost" in str(refused.error)
    assert (admitted.error, finished.error) == (None, None)
    assert (done, answer.status) == ("uploaded", "accepted")
    assert place.kinds() == ["genesis", "reserve", "commit", "rotated", "reserve", "commit"]


def test_key_lost_with_a_restored_folder_takes_back_what_witnesses_hold(place):
    backup = place.folder / "backup"
    place.round(1)
    shutil.copytree(place.home.root, backup)
    place.round(2)
    shutil.rmtree(place.home.root)
    shutil.copytree(backup, place.home.root)
    place.home.key.unlink()

    place.at_site("--lost-key")
    fedloom("rotate", place.request, "--yes", "--replace")
    finished = place.at_site("--finish")
    done, answer = place.round(3)

    assert finished.error is None
    assert place.kinds()[:6] == ["genesis", "reserve", "commit", "reserve", "commit", "rotated"]
    assert (done, answer.status) == ("uploaded", "accepted")


def test_folder_from_before_the_change_is_refused_everywhere(place):
    place.round(1)
    backup = place.folder / "backup"
    shutil.copytree(place.home.root, backup)
    place.at_site()
    fedloom("rotate", place.request, "--yes")
    place.at_site("--finish")
    place.round(2)
    shutil.rmtree(place.home.root)
    shutil.copytree(backup, place.home.root)

    with pytest.raises(LedgerCorrupt, match="rolled back"):
        place.round(3)
    recovered = fedloom("ledger", "recover", "--home", place.home.root)

    assert isinstance(recovered.error, LedgerCorrupt)
    assert "site rotate --lost-key" in recovered.error.hint


def test_revoked_site_comes_back_with_other_keys_and_its_ledger(place):
    place.round(1)
    fedloom("revoke", SITE, "--yes", "--reason", "laptop stolen")
    place.at_site()

    refused = fedloom("rotate", place.request, "--yes")
    admitted = fedloom("rotate", place.request, "--yes", "--replace")
    finished = place.at_site("--finish")
    done, answer = place.round(2)

    assert "it was revoked" in str(refused.error)
    assert (admitted.error, finished.error) == (None, None)
    assert (done, answer.status) == ("uploaded", "accepted")
    assert place.kinds() == ["genesis", "reserve", "commit", "rotated", "reserve", "commit"]


def test_site_is_revoked_and_shown_where_no_prefect_is_named(place, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        revoked = fedloom("revoke", SITE, "--yes", "--json")
        listed = fedloom("sites", "--json")

    assert (revoked.error, listed.error) == (None, None)
    assert "PREFECT_API_URL is not set" in revoked.stderr
    assert "PREFECT_API_URL is not set" in listed.document["prefect"]
    assert [each["state"] for each in listed.document["sites"]] == ["revoked"]


def test_revoked_site_is_left_out_of_later_plans_and_listed_with_the_reason(place):
    revoked = fedloom("revoke", SITE, "--yes", "--reason", "laptop stolen", "--json")
    listed = fedloom("sites", "--json")
    again = fedloom("revoke", SITE, "--yes")

    assert revoked.error is None
    assert revoked.document["ended_runs"] is None
    assert "session runs were not ended" in revoked.stderr
    assert place.entry() is None
    (site,) = listed.document["sites"]
    assert (site["state"], site["reason"]) == ("revoked", "laptop stolen")
    assert "enrolled any more" in str(again.error)


def test_sites_are_listed_without_prefect_with_rounds_and_fingerprint(place):
    place.round(1)
    read_out = fedloom("site", "enrolment", "--home", place.home.root, "--json").document

    listed = fedloom("sites", "--json")

    (site,) = listed.document["sites"]
    assert (site["asked"], site["answered"], site["state"]) == (1, 1, "unknown")
    assert site["fingerprint"] == read_out["fingerprint"]
    assert "no prefect server answers" in listed.document["prefect"]
    assert keys.roster(1) in place.store.list(keys.ROSTERS)
