"""The operator's view: all that left or would leave, and nothing else about the rows."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from site_folders import site_folder
from typer.testing import CliRunner

from fl_core.artifacts.documents import from_bytes, sha256_hex
from fl_core.errors import CampaignError
from fl_core.updates.manifest import UpdateManifest
from flows.cli.main import app
from tasks.outbox_page import to_page
from tasks.outbox_view import read_outbox
from tasks.outgoing import OutgoingLog
from tasks.site_decisions import (
    KnownCampaign,
    find_campaign,
    leave,
    pause,
    refuse,
)

FILES = ["budget.json", "manifest.json", "payload.safetensors"]


def fedloom(*words, stdin=None):
    return CliRunner(env={"COLUMNS": "220"}).invoke(app, [*words], input=stdin)


def shown(site, **options):
    return read_outbox(site.home, **options)


@pytest.fixture
def site(tmp_path):
    return site_folder(tmp_path)


def test_uploaded_round_is_shown_with_every_file_its_manifest_and_its_price(site):
    site.answer()

    (one,) = shown(site).exchanges

    stored = {
        name: site.store.get(f"campaigns/tiny/rounds/0001/updates/a/{name}") for name in FILES
    }
    assert (one.campaign, one.round, one.progress, one.attempts) == ("tiny", 1, "uploaded", 1)
    assert [(f.name, f.size_bytes, f.sha256, f.leaves) for f in one.files] == [
        (name, len(data), sha256_hex(data), True) for name, data in stored.items()
    ]
    assert one.manifest == from_bytes(UpdateManifest, stored["manifest.json"], what="manifest")
    assert list(one.times) == ["sending", "uploaded"]
    assert one.charge.event == "8 x (gaussian 0.8 at rate 0.1)"
    assert (one.charge.ledger_seq, one.charge.epsilon_before) == (2, 0.0)


def test_price_of_a_round_is_what_the_ledger_amounts_to_with_it(site):
    for number in (1, 2):
        site.answer(number)

    second, first = shown(site).exchanges

    # tests/vectors: 16 steps at noise 0.8, rate 0.1, delta 1e-5 are epsilon 5.27 by PLD.
    assert first.charge.epsilon_after == second.charge.epsilon_before
    assert second.charge.epsilon_after == pytest.approx(5.27, abs=0.01)
    assert (second.charge.epsilon_limit, second.charge.delta) == (8.0, 1e-5)


def test_only_the_newest_are_shown_and_the_rest_is_counted(site):
    for number in (1, 2, 3):
        site.answer(number)

    view = shown(site, most=2)

    assert [one.round for one in view.exchanges] == [3, 2]
    assert view.n_exchanges == 3


def test_every_request_of_the_record_is_shown_with_what_it_carried(site):
    log = OutgoingLog(site.home.root, process="session")
    request = log.sends("PUT", "/store/objects/campaigns/tiny/x", b"12345")
    log.answered(request, 201)
    log.kept("POST", "/api/logs", reason="log lines stay here")

    view = shown(site)

    sent, kept = view.requests
    assert (sent.what, sent.size_bytes, sent.status) == ("campaigns/tiny/x", 5, 201)
    assert sent.sha256 == sha256_hex(b"12345")
    assert kept.kept == "log lines stay here"
    assert (view.n_requests, view.n_kept, view.sent_bytes, view.log_lines) == (1, 1, 5, 0)


def test_request_whose_line_was_changed_does_not_vanish_unseen(site):
    log = OutgoingLog(site.home.root, process="session")
    log.answered(log.sends("PUT", "/store/objects/campaigns/tiny/x", b"12345"), 201)
    file = site.home.root / "outgoing.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"payload_bytes"', b'"payload_length"'))

    view = shown(site)
    told = fedloom("site", "outbox", "--home", str(site.home.root)).output

    assert (view.n_requests, view.n_unreadable) == (0, 1)
    page = to_page(view, made=datetime.now(UTC))
    for text in (" ".join(told.split()), page):
        assert "1 line of the record of requests cannot be read" in text


def test_nothing_in_the_view_is_a_figure_of_the_rows(site):
    site.answer()
    (site.home.root / "readouts").mkdir(exist_ok=True)

    plain = json.dumps(shown(site).model_dump(mode="json"))

    assert not re.search("cosine|clipped_share|norm_ratio|loss|n_rows", plain)


def test_round_that_was_refused_says_why_at_the_site_and_only_policy_outside(site):
    refuse(site.home, find_campaign(site.home, "tiny"), round_number=1, why="audit week")

    answer = site.answer()

    (one,) = shown(site).exchanges
    assert answer == "declined"
    assert (one.progress, one.why) == ("declined", "policy: its operator refused the round")
    assert (one.files, one.charge) == ((), None)
    assert b"audit week" not in site.store.get("campaigns/tiny/rounds/0001/updates/a/declined.json")
    assert shown(site).decisions[0].why == "audit week"


def test_ledger_that_does_not_hold_hides_nothing_else(site):
    site.answer()
    entry = site.home.root / "ledger" / "entries" / "000003.json"
    entry.chmod(0o600)
    entry.write_bytes(b"{}")

    view = shown(site)

    assert view.complaint
    assert [file.name for file in view.exchanges[0].files] == FILES
    assert view.exchanges[0].charge is None


def test_session_ends_after_its_farewell(site):
    leave(site.home, find_campaign(site.home, "tiny"), why="")
    session = site.session

    answer = session.answer(site.plan())

    assert (answer, session.has_left()) == ("declined", True)
    assert site.left() == ["declined.json"]


def test_paused_site_declines_and_its_next_round_goes_on_after_resume(site):
    home = str(site.home.root)
    fedloom("site", "pause", "--home", home, "--why", "backup")
    paused = shown(site).is_paused

    first = site.answer(1)
    fedloom("site", "resume", "--home", home)
    second = site.answer(2)

    assert paused
    assert (first, second) == ("declined", "uploaded")


def test_campaign_is_found_by_id_or_digits_and_a_wrong_one_names_what_there_is(site):
    digest = site.assembly.digest

    assert find_campaign(site.home, "tiny") == KnownCampaign(digest, "tiny")
    assert find_campaign(site.home, digest[:10]) == KnownCampaign(digest, "tiny")
    assert find_campaign(site.home, "f" * 64) == KnownCampaign("f" * 64, "f" * 12)
    with pytest.raises(CampaignError, match=f"tiny .{digest[:12]}"):
        find_campaign(site.home, "tinny")


@pytest.mark.parametrize("words", [("pause",), ("refuse", "tiny"), ("outbox",)], ids=" ".join)
def test_wrong_folder_gets_no_decision(tmp_path, words):
    result = fedloom("site", *words, "--home", str(tmp_path))

    assert isinstance(result.exception, CampaignError)
    assert list(tmp_path.iterdir()) == []


def test_refusal_that_was_never_made_is_not_taken_back(site):
    result = fedloom("site", "refuse", "tiny", "--undo", "--home", str(site.home.root))

    assert isinstance(result.exception, CampaignError)
    assert shown(site).decisions == ()


def test_leaving_asks_first(site):
    result = fedloom("site", "leave", "tiny", "--home", str(site.home.root), stdin="n\n")

    assert isinstance(result.exception, CampaignError)
    assert shown(site).left == ()


def test_terminal_and_json_show_the_same_rounds(site):
    site.answer()
    home = str(site.home.root)

    result = fedloom("site", "outbox", "--home", home, "--json")

    document = json.loads(result.stdout)["outbox"]
    assert document == shown(site).model_dump(mode="json")
    assert "uploaded" in result.stderr
    assert document["exchanges"][0]["manifest"]["payload_sha256"][:12] in result.stderr


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.open = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_loads_and_runs_nothing(site):
    site.answer()
    pause(site.home, why='<script>alert("1")</script>')

    page = to_page(shown(site), made=datetime.now(UTC))

    tags = Tags(page)
    assert tags.open == []
    assert not tags.names & {"script", "img", "link", "iframe", "a", "form", "object"}
    assert not tags.attributes & {"src", "href", "onclick", "onload"}
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert all(file.sha256 in page for file in shown(site).exchanges[0].files)
