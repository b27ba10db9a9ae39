"""Shared by all tests; its presence puts ``tests`` on the path for ``tiny_models``."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time: a test that fails on one run in ten tells nobody what broke.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# Two cores are shared by several test processes; thread pools only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A skip hides a test that nobody runs any more: each is printed by name with its reason, and the
# run fails unless `allowed_skips.txt` lists it.
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def pytest_configure(config):
    config.pluginmanager.register(SkipList(), "fedloom-skips")


class SkipList:
    def __init__(self):
        self.skipped = {}
        lines = ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
        self.allowed = {line for line in lines if line and not line.startswith("#")}

    @property
    def unlisted(self):
        return sorted(set(self.skipped) - self.allowed)

    def _note(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = str(report.longrepr[-1])

    pytest_runtest_logreport = _note
    pytest_collectreport = _note

    def pytest_sessionfinish(self, session):
        if self.unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for name in self.unlisted:
            terminalreporter.line(f"skip that is not allowed: {name}: {self.skipped[name]}")
