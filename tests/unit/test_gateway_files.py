"""The gateway's files are made once; every site pins the certificate."""

import json

import pytest
from typer.testing import CliRunner

from fl_core.errors import CampaignError
from flows.cli.main import app
from flows.gateway.files import fingerprint_of, prepared_invite
from flows.gateway.server import Listening, serve
from tasks.certificates import certificate_sha256, make_certificate
from tasks.invite import read_invite

URL = "https://fl.example.org:8443"


def test_first_start_with_a_url_makes_certificate_key_and_invite(tmp_path):
    invite = prepared_invite(tmp_path, url=URL + "/")

    assert invite.url == URL
    assert read_invite(tmp_path / "invite.json") == invite
    assert invite.certificate == (tmp_path / "tls.crt").read_text()
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_later_starts_keep_what_sites_have_pinned(tmp_path):
    first = prepared_invite(tmp_path, url=URL)

    assert prepared_invite(tmp_path, url=URL) == first
    assert prepared_invite(tmp_path, url=None) == first


def test_certificate_of_ones_own_is_used_as_it_is(tmp_path):
    pem = make_certificate(
        tmp_path / "tls.crt", tmp_path / "tls.key", common_name="own", hosts=["fl.example.org"]
    )

    assert prepared_invite(tmp_path, url=URL).certificate == pem


def test_another_url_is_refused_because_sites_have_the_first(tmp_path):
    prepared_invite(tmp_path, url=URL)

    with pytest.raises(CampaignError, match="sites have the first"):
        prepared_invite(tmp_path, url="https://other.example.org:8443")


@pytest.mark.parametrize("url", [None, "http://fl.example.org", "https://", "fl.example.org:8443"])
def test_first_start_without_an_https_url_is_refused(tmp_path, url):
    with pytest.raises(CampaignError):
        prepared_invite(tmp_path, url=url)

    assert not (tmp_path / "invite.json").exists()


def test_fingerprint_is_the_certificates_sha256_in_groups(tmp_path):
    invite = prepared_invite(tmp_path, url=URL)

    assert fingerprint_of(invite).replace(" ", "") == certificate_sha256(invite.certificate)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "fl.example.org"])  # noqa: S104  refused
def test_gateway_without_tls_listens_on_this_machine_only(tmp_path, host):
    prepared_invite(tmp_path, url=URL)

    with pytest.raises(CampaignError, match="without TLS"):
        serve(Listening(tmp_path, host, 1, behind_proxy=True), None, prefect_url=None)


def shown(home, *words):
    return CliRunner().invoke(app, ["gateway", "show", "--home", str(home), *words])


def test_show_hands_the_invite_out_as_sites_take_it(tmp_path):
    invite = prepared_invite(tmp_path / "gateway", url=URL)

    printed = shown(tmp_path, "--out", "-")
    shown(tmp_path, "--out", str(tmp_path / "copy.json"))

    (tmp_path / "printed.json").write_text(printed.stdout)
    assert read_invite(tmp_path / "printed.json") == invite
    assert read_invite(tmp_path / "copy.json") == invite
    assert fingerprint_of(invite) in printed.stderr


def test_show_as_json_names_url_and_certificate(tmp_path):
    invite = prepared_invite(tmp_path / "gateway", url=URL)

    document = json.loads(shown(tmp_path, "--json").stdout)

    assert document["url"] == URL
    assert document["certificate_sha256"].replace(" ", "") == certificate_sha256(invite.certificate)


def test_show_says_what_to_do_where_there_is_no_gateway(tmp_path):
    ended = shown(tmp_path)

    assert isinstance(ended.exception, CampaignError)
    assert "invite.json" in str(ended.exception)
