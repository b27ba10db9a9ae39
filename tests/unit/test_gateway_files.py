"""The gateway's files are made once; every site pins the certificate."""

import json

import pytest
from typer.testing import CliRunner

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from flows.cli.main import app
from flows.gateway.files import fingerprint_of, prepared_invite
from flows.gateway.server import Listening, serve
from tasks.certificates import certificate_sha256, make_certificate
from tasks.invite import Invite, read_invite

URL = "https://fl.example.org:8443"
OTHER = "https://other.example.org:8443"


def test_first_start_with_a_url_makes_certificate_key_and_invite(tmp_path):
    invite = prepared_invite(tmp_path, urls=[URL + "/"])

    assert invite.url == URL
    assert read_invite(tmp_path / "invite.json") == invite
    assert invite.certificate == (tmp_path / "tls.crt").read_text()
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_later_starts_keep_what_sites_have_pinned(tmp_path):
    first = prepared_invite(tmp_path, urls=[URL])

    assert prepared_invite(tmp_path, urls=[URL]) == first
    assert prepared_invite(tmp_path) == first


def test_certificate_of_ones_own_is_used_as_it_is(tmp_path):
    pem = make_certificate(
        tmp_path / "tls.crt", tmp_path / "tls.key", common_name="own", hosts=["fl.example.org"]
    )

    assert prepared_invite(tmp_path, urls=[URL]).certificate == pem


def test_further_url_is_added_under_the_same_certificate_and_parts_no_site(tmp_path):
    first, told = prepared_invite(tmp_path, urls=[URL]), []

    invite = prepared_invite(tmp_path, urls=[OTHER, URL], tell=told.append)

    assert invite.urls() == (OTHER, URL)
    assert invite.certificate == first.certificate
    assert told == []


def test_url_that_sites_have_and_that_goes_is_said_to_need_another_invite(tmp_path):
    prepared_invite(tmp_path, urls=[URL])
    told = []

    invite = prepared_invite(tmp_path, urls=[OTHER], tell=told.append)

    assert read_invite(tmp_path / "invite.json") == invite
    assert "fedloom site gateway" in told[0]


def test_invite_names_a_certificate_that_took_the_place_of_the_first(tmp_path):
    prepared_invite(tmp_path, urls=[URL])
    pem = make_certificate(
        tmp_path / "tls.crt", tmp_path / "tls.key", common_name="own", hosts=["fl.example.org"]
    )
    told = []

    invite = prepared_invite(tmp_path, tell=told.append)

    assert invite.certificate == pem
    assert read_invite(tmp_path / "invite.json") == invite
    assert "another address or certificate" in told[0]


@pytest.mark.parametrize("stated", ["", None], ids=["another", "public authority"])
def test_invite_keeps_the_certificate_that_a_proxy_shows(tmp_path, stated):
    other = make_certificate(tmp_path / "p.crt", tmp_path / "p.key", common_name="p", hosts=["p"])
    shown = other if stated == "" else stated
    (tmp_path / "invite.json").write_bytes(to_bytes(Invite(url=URL, certificate=shown)))

    invite = prepared_invite(tmp_path, urls=[URL], is_behind_proxy=True)

    assert invite.certificate == shown
    assert not (tmp_path / "tls.crt").exists()


def test_certificate_without_its_key_is_refused(tmp_path):
    prepared_invite(tmp_path, urls=[URL])
    (tmp_path / "tls.key").unlink()

    with pytest.raises(CampaignError, match="no key beside it"):
        prepared_invite(tmp_path, urls=[URL])


def test_chain_in_place_of_one_certificate_is_refused_before_an_invite_is_written(tmp_path):
    pem = make_certificate(tmp_path / "tls.crt", tmp_path / "tls.key", common_name="x", hosts=["x"])
    (tmp_path / "tls.crt").write_text(pem + pem)

    with pytest.raises(CampaignError, match="not one readable certificate"):
        prepared_invite(tmp_path, urls=[URL])

    assert not (tmp_path / "invite.json").exists()


def test_first_start_without_a_url_is_refused(tmp_path):
    with pytest.raises(CampaignError, match="no invite yet"):
        prepared_invite(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://fl.example.org",
            "https://",
            "fl.example.org:8443",
            "https://fl.example.org/path",
        ),
        *(
            "https://fl.example.org:99999",
            "https://fl.example.org:x",
            "https://b\u00fccher.example",
        ),
        *(
            "https://user@fl.example.org",
            "https://fl.example.org?a=b",
            "https://[::1",
            "https://:1",
        ),
    ],
)
def test_url_that_is_none_is_refused_before_anything_is_made(tmp_path, url):
    with pytest.raises(CampaignError, match="expected https://host:port"):
        prepared_invite(tmp_path, urls=[url])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["FEDLOOM_STORE", "PREFECT_API_URL"])
def test_gateway_never_falls_back_on_the_keys_of_a_coordinator(tmp_path, monkeypatch, absent):
    for name in ("FEDLOOM_STORE", "PREFECT_API_URL"):
        monkeypatch.setenv(name, f"file://{tmp_path}")
    monkeypatch.delenv(absent)
    words = ["gateway", "start", "--home", str(tmp_path), "--url", URL]

    ended = CliRunner().invoke(app, words)

    assert isinstance(ended.exception, CampaignError)
    assert f"{absent} is not set" in str(ended.exception)
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_is_the_certificates_sha256_in_groups(tmp_path):
    invite = prepared_invite(tmp_path, urls=[URL])

    assert fingerprint_of(invite).replace(" ", "") == certificate_sha256(invite.certificate)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "fl.example.org"])  # noqa: S104  refused
def test_gateway_without_tls_listens_on_this_machine_only(tmp_path, host):
    prepared_invite(tmp_path, urls=[URL])

    with pytest.raises(CampaignError, match="without TLS"):
        serve(Listening(tmp_path, host, 1, behind_proxy=True), None, prefect_url=None)


def shown(home, *words):
    return CliRunner().invoke(app, ["gateway", "show", "--home", str(home), *words])


def test_show_hands_the_invite_out_as_sites_take_it(tmp_path):
    invite = prepared_invite(tmp_path / "gateway", urls=[URL])

    printed = shown(tmp_path, "--out", "-")
    shown(tmp_path, "--out", str(tmp_path / "copy.json"))

    (tmp_path / "printed.json").write_text(printed.stdout)
    assert read_invite(tmp_path / "printed.json") == invite
    assert read_invite(tmp_path / "copy.json") == invite
    assert fingerprint_of(invite) in printed.stderr


def test_show_as_json_names_url_and_certificate(tmp_path):
    invite = prepared_invite(tmp_path / "gateway", urls=[URL])

    document = json.loads(shown(tmp_path, "--json").stdout)

    assert document["url"] == URL
    assert document["certificate_sha256"].replace(" ", "") == certificate_sha256(invite.certificate)


def test_show_says_what_to_do_where_there_is_no_gateway(tmp_path):
    ended = shown(tmp_path)

    assert isinstance(ended.exception, CampaignError)
    assert "invite.json" in str(ended.exception)
