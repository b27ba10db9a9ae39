"""The doctor at a coordinator with servers of its own: the gateway, as its invite names it."""

import json
import socketserver
import ssl
import threading

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.gateway.files import prepared_invite
from flows.processes import free_port
from tasks.certificates import make_certificate


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A coordinator's home with a gateway that shows its certificate, and servers that are away."""
    folder, port = tmp_path / "home" / "gateway", free_port()
    prepared_invite(folder, urls=[f"https://127.0.0.1:{port}"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            # The first step connects and says nothing.
            try:
                context.wrap_socket(self.request, server_side=True).close()
            except OSError:
                return

    monkeypatch.setenv("FEDLOOM_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.delenv("FEDLOOM_SITE_HOME", raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "home"
        server.shutdown()


def looked(*words):
    ended = CliRunner().invoke(app, ["doctor", *map(str, words), "--json"])
    return {check["name"]: check for check in json.loads(ended.stdout)["checks"]}


def test_certificate_that_the_invite_names_is_looked_at(home):
    checks = looked("--home", home)

    assert checks["way to the gateway"]["verdict"] == "ok"
    assert checks["gateway's certificate"]["verdict"] == "ok"
    assert "days left" in checks["gateway's certificate"]["found"]


def test_gateway_that_shows_another_certificate_than_it_invites_with_is_a_failure(home):
    folder = home / "gateway"
    make_certificate(folder / "tls.crt", folder / "tls.key", common_name="x", hosts=["127.0.0.1"])
    prepared_invite(folder)

    assert looked("--home", home)["gateway's certificate"]["verdict"] == "fail"


def test_gateway_elsewhere_is_looked_at_by_a_stated_invite(home, tmp_path):
    invite = home / "gateway" / "invite.json"
    empty = tmp_path / "empty"
    empty.mkdir()

    unseen = looked("--home", empty)
    seen = looked("--home", empty, "--invite", invite)

    assert (unseen["gateway"]["verdict"], "--invite" in unseen["gateway"]["remedy"]) == (
        "warn",
        True,
    )
    assert seen["gateway's certificate"]["verdict"] == "ok"
