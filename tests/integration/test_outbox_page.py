"""The page of an outbox in a browser: all of it is there, and nothing is asked for."""

from datetime import UTC, datetime

import pytest
from browser import open_page
from site_folders import site_folder

from tasks.outbox_page import to_page
from tasks.outbox_view import read_outbox
from tasks.outgoing import OutgoingLog
from tasks.site_decisions import find_campaign, refuse

pytestmark = pytest.mark.timeout(180)


def test_page_opens_from_the_disk_and_asks_for_nothing(tmp_path):
    site = site_folder(tmp_path)
    site.answer(1)
    refuse(site.home, find_campaign(site.home, "tiny"), round_number=2, why="<b>audit</b>")
    site.answer(2)
    log = OutgoingLog(site.home.root, process="session")
    log.answered(log.sends("PUT", "/store/objects/campaigns/tiny/x", b"12345"), 201)
    view, file = read_outbox(site.home), tmp_path / "outbox.html"
    file.write_text(to_page(view, made=datetime.now(UTC)), encoding="utf-8")

    with open_page() as page:
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"file://{file}")
        text = page.inner_text("body")
        page.click("summary")
        files = page.inner_text("details")

    assert asked == [f"file://{file}"]
    assert said == []
    assert "PUT campaigns/tiny/x" in text
    assert "<b>audit</b>" in text
    assert all(one.sha256 in files for one in view.exchanges[-1].files)
