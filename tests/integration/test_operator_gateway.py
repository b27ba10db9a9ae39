"""A site behind a real gateway: what its operator is shown is what the coordinator got, no more."""

import threading
import time

import pytest
from site_folders import SITE, site_folder
from site_gateway import Gateway

from fl_core.artifacts import keys
from fl_core.artifacts.documents import sha256_hex, write_document
from fl_core.errors import StoreUnavailable
from fl_core.rounds.collection import examine_site
from fl_core.rounds.documents import Collected
from fl_core.rounds.plan import available_sites
from tasks import session_steps, site_decisions
from tasks.client_steps import take_part
from tasks.outbox_view import read_outbox
from tasks.session_steps import SessionRequest, serve
from tasks.site_decisions import approve_round, find_campaign, leave

FILES = ["budget.json", "manifest.json", "payload.safetensors"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(site_decisions, "ASK_S", 0.5)
    # Outside of a flow run a task would start a Prefect server of its own.
    monkeypatch.setattr(session_steps, "take_part", take_part.fn)
    gateway = Gateway(tmp_path / "gateway")
    gateway.folder.mkdir()
    gateway.start()
    try:
        site = site_folder(tmp_path, gateway=gateway)
        until_enrolled(site)
        yield site
    finally:
        gateway.stop()


def until_enrolled(site):
    # The gateway looks for a new roster every two seconds.
    deadline = time.monotonic() + 30
    while True:
        try:
            return site.reached.list(keys.ROSTERS)
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def wait_for(progress, site):
    deadline = time.monotonic() + 60
    while not any(one.progress == progress for one in read_outbox(site.home).exchanges):
        assert time.monotonic() < deadline, f"waited in vain for {progress}"
        time.sleep(0.1)


def served(site):
    """Serve a campaign run in a thread, as the worker's child does."""
    request = SessionRequest("tiny", "run", site.home, site.config)
    words = []
    thread = threading.Thread(
        target=lambda: words.append(serve(request, make_work=lambda *_: site.work))
    )
    thread.start()
    return thread, words


def test_what_is_shown_is_what_leaves_and_what_the_gateway_got(site):
    site.hold()
    thread, words = served(site)
    site.plan()
    wait_for("held", site)
    (shown,) = read_outbox(site.home).exchanges
    before = site.left()

    approve_round(site.home, find_campaign(site.home, "tiny"), 1)
    wait_for("uploaded", site)
    site.store.put_once(keys.stop("tiny", "run"), b"{}")
    thread.join(60)

    prefix = keys.update_prefix("tiny", 1, SITE)
    requests = read_outbox(site.home).requests
    sent = {r.what: r.sha256 for r in requests if r.method == "PUT" and r.status == 201}
    written = [key for key in site.store.list("") if f"/{SITE}/" in key]
    assert words == ["stopped"]
    assert before == []
    assert {f.name: f.sha256 for f in shown.files} == {
        name: sha256_hex(site.store.get(prefix + name)) for name in FILES
    }
    # Whatever the coordinator's store holds of the site went through the record, byte for byte.
    assert {key: sha256_hex(site.store.get(key)) for key in written} == sent
    assert not any("held" in r.what or "withheld" in r.what for r in requests)


def test_session_ends_with_a_farewell_that_the_coordinator_can_verify(site):
    leave(site.home, find_campaign(site.home, "tiny"), why="the study has ended")
    thread, words = served(site)
    site.plan()
    thread.join(60)

    answer = examine_site(site.assembly, site.store, site.plan(), site=SITE)
    assert words == ["left"]
    assert (answer.status, answer.reason) == ("declined", "left")
    assert available_sites(site.assembly, site.store) == [SITE]
    collected = Collected(round=1, answers={SITE: answer}, has_quorum=False)
    write_document(site.store, keys.collected("tiny", 1), collected)
    assert available_sites(site.assembly, site.store) == []
