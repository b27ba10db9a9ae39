"""A site's log is for its owner's eyes only."""

import logging
import stat

import pytest

from tasks import site_log
from tasks.site_log import keep_log


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "log" / "site.log"
    before = {
        name: list(logging.getLogger(name).handlers) for name in ("fl_core", "tasks", "flows")
    }
    yield path
    for name, handlers in before.items():
        for added in set(logging.getLogger(name).handlers) - set(handlers):
            logging.getLogger(name).removeHandler(added)
            added.close()


def test_lines_of_all_three_packages_are_kept(log_file):
    keep_log(log_file)

    for name in ("fl_core.rounds", "tasks.client_steps", "flows.site_session"):
        logging.getLogger(name).warning("seen by %s", name)

    kept = log_file.read_text(encoding="utf-8")
    assert [line.rsplit(" ", 1)[1] for line in kept.splitlines()] == [
        "fl_core.rounds",
        "tasks.client_steps",
        "flows.site_session",
    ]


def test_nobody_else_reads_the_log_also_after_it_was_rotated(log_file, monkeypatch):
    monkeypatch.setattr(site_log, "MAX_BYTES", 100)
    keep_log(log_file)

    for _ in range(5):
        logging.getLogger("tasks").warning("a line of more than fifty characters, to fill the file")

    assert len(list(log_file.parent.iterdir())) > 1
    assert stat.S_IMODE(log_file.parent.stat().st_mode) == 0o700
