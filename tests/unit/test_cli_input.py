"""What a person types wrong is one CampaignError with a remedy, before anything is written."""

import pytest

from fl_core.errors import CampaignError
from flows.cli import campaigns, sites
from tasks.enrolment import read_enrolment
from tasks.site_config import SiteHome, read_site_config


def test_campaign_with_a_bad_id_is_not_written(tmp_path):
    file = tmp_path / "first.toml"

    with pytest.raises(CampaignError, match="id is 'Bad Id'"):
        campaigns.init(file, "Bad Id")

    assert not file.exists()


@pytest.mark.parametrize("name", ["absent.json", "absent.toml", "folder/absent"])
def test_run_takes_what_is_no_id_as_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CampaignError, match=f"{name}: cannot be read"):
        campaigns.run(name)


def test_campaign_to_resume_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_STORE", tmp_path.as_uri())
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    with pytest.raises(CampaignError, match="no campaign 'absent'"):
        campaigns.run("absent")


def test_site_with_a_bad_name_is_not_made(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nbucket,x\n", encoding="utf-8")
    home = tmp_path / "site"

    with pytest.raises(CampaignError, match="site is 'North X'"):
        sites.site_init("North X", rows, 8.0, 1e-5, home, store="file:///srv/store")

    assert not home.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"site": "north"}', "is not a valid Enrolment: signing_key"),
        (b"\xff", "is not a valid Enrolment"),
    ],
    ids=["field", "bytes"],
)
def test_bad_enrolment_is_input_to_correct(tmp_path, data, said):
    file = tmp_path / "enrol.json"
    file.write_bytes(data)

    with pytest.raises(CampaignError, match=said) as caught:
        read_enrolment(file)

    assert "fedloom site init" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"site =", "is not TOML"), (b"", "site is missing")],
    ids=["bytes", "toml", "empty"],
)
def test_bad_site_config_names_the_file(tmp_path, data, said):
    home = SiteHome(tmp_path)
    home.config.write_bytes(data)

    with pytest.raises(CampaignError, match=f"site.toml: {said}"):
        read_site_config(home)
