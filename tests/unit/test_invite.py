"""The invite: what it must hold, and what a site keeps of it."""

import pytest

from fl_core.artifacts.documents import to_bytes
from fl_core.errors import CampaignError
from tasks.certificates import make_certificate
from tasks.invite import Invite, accept_invite, read_invite

URL = "https://coordinator.example:8443"


@pytest.fixture
def pem(tmp_path):
    folder = tmp_path / "gateway"
    return make_certificate(
        folder / "tls.crt", folder / "tls.key", common_name="gateway", hosts=["127.0.0.1"]
    )


def test_invite_comes_back_from_its_file(tmp_path, pem):
    invite = Invite(url=URL, certificate=pem, other_urls=("https://127.0.0.1:8443",))
    (tmp_path / "invite.json").write_bytes(to_bytes(invite))

    found = read_invite(tmp_path / "invite.json")

    assert found == invite
    assert found.urls() == (URL, "https://127.0.0.1:8443")


def test_site_pins_the_certificate_that_it_was_given(tmp_path, pem):
    access = accept_invite(Invite(url=URL, certificate=pem), tmp_path / "site")

    assert access.url == URL
    assert (tmp_path / "site" / str(access.certificate)).read_text() == pem
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o700


def test_another_certificate_never_replaces_the_one_that_is_pinned(tmp_path, pem):
    accept_invite(Invite(url=URL, certificate=pem), tmp_path)
    other = make_certificate(
        tmp_path / "o.crt", tmp_path / "o.key", common_name="gateway", hosts=["127.0.0.1"]
    )

    with pytest.raises(CampaignError, match="another certificate"):
        accept_invite(Invite(url=URL, certificate=other), tmp_path)

    assert (tmp_path / "gateway.crt").read_text() == pem


def test_site_pins_nothing_where_a_public_authority_vouches(tmp_path):
    access = accept_invite(Invite(url=URL), tmp_path / "site")

    assert access.certificate is None
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{}", "url"),
        ('{"url": "ftp://somewhere"}', "url"),
        ('{"url": "https://host:1/path"}', "url"),
        ('{"url": "https://user:word@host:1"}', "url"),
        ('{"url": "https://host:1", "certificate": "-----BEGIN CERTIFICATE-----"}', "certificate"),
        ("not json", "invite.json"),
    ],
)
def test_invite_that_names_no_gateway_is_refused(tmp_path, text, complaint):
    (tmp_path / "invite.json").write_text(text)

    with pytest.raises(CampaignError, match=complaint):
        read_invite(tmp_path / "invite.json")


def test_absent_invite_is_named_with_what_it_is(tmp_path):
    with pytest.raises(CampaignError) as refused:
        read_invite(tmp_path / "invite.json")

    assert "invite.json" in str(refused.value)
    assert "fedloom gateway show" in refused.value.hint
