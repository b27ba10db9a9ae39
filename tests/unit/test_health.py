"""The doctor's judgements on what it finds."""

import importlib.metadata
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from time import time
from types import SimpleNamespace

import pytest

from flows import health
from flows.processes import free_port

SERVERS = {"prefect": "3.8.8", "fastapi": "0.150.0", "sqlalchemy": "2.0.51"}


@pytest.fixture
def server_ahead_by():
    """A function that starts a web server whose clock is so many seconds ahead."""
    running = []

    def begin(seconds: float, *, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(status)
                self.send_header("Date", formatdate(time() + seconds, usegmt=True))
                self.end_headers()

            def log_message(self, *_):
                return

        server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield begin
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("package", "version", "verdict"),
    [
        ("fastapi", "0.150.0", "ok"),
        # 0.151.0 is the first whose filter calls answer 422 with prefect 3.8.8 (tried).
        ("fastapi", "0.151.0", "fail"),
        ("fastapi", "1.0.0", "fail"),
        ("sqlalchemy", "2.0.51", "ok"),
        # 2.1.9 with prefect 3.8.8: no scheduled run is ever started (tried).
        ("sqlalchemy", "2.1.9", "fail"),
        ("prefect", "3.8.8", "ok"),
        ("prefect", "3.8.9", "fail"),
        ("peft", "0.21.0", "ok"),
    ],
)
def test_package_versions_are_judged(package, version, verdict, monkeypatch):
    installed = SERVERS | {package: version}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed.get(name, "9.9.9"))

    checks = {check.name: check for check in health.installation()}

    assert checks[package].verdict == verdict
    assert checks[package].found == version
    assert bool(checks[package].remedy) == (verdict == "fail")


def test_absent_package_is_a_warning_because_no_machine_needs_all(monkeypatch):
    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return SERVERS.get(name, "1.0.0")

    monkeypatch.setattr(importlib.metadata, "version", version)

    checks = {check.name: check for check in health.installation()}

    assert checks["torch"].verdict == "warn"


def test_the_three_packages_come_from_one_place():
    checks = {check.name: check for check in health.installation()}

    assert checks["fedloom"].verdict == "ok"


@pytest.mark.parametrize("ahead", [0, 90, -90])
@pytest.mark.parametrize("status", [200, 403])
def test_clock_skew_is_read_from_the_date_header(ahead, status, server_ahead_by):
    url = server_ahead_by(ahead, status=status)

    skew = health.clock_skew_s(url)

    # The header has whole seconds; the rest is the time of the call.
    assert skew == pytest.approx(ahead, abs=2)


def test_server_with_a_wrong_clock_fails(server_ahead_by):
    url = server_ahead_by(60)
    addresses = health.Addresses(prefect_api=None, mlflow=url, store_environment=None)

    checks = {check.name: check for check in health.servers(addresses)}

    assert checks["mlflow"].verdict == "ok"
    assert checks["clock of mlflow"].verdict == "fail"
    assert "NTP" in checks["clock of mlflow"].remedy


def test_server_that_is_away_fails_and_has_no_clock():
    url = f"http://127.0.0.1:{free_port()}"
    addresses = health.Addresses(prefect_api=f"{url}/api", mlflow=url, store_environment=None)

    checks = {check.name: check for check in health.servers(addresses)}

    assert {name: check.verdict for name, check in checks.items()} == {
        "prefect": "fail",
        "mlflow": "fail",
    }
    assert all(url in check.remedy + check.found for check in checks.values())


def test_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path, monkeypatch):
    free = {tmp_path: 1.5e9}
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))

    check = health.disk(tmp_path / "home")

    assert check.verdict == "fail"
    assert check.found == f"1.5 GB free at {tmp_path}"
